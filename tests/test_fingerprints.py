"""Fingerprints and their comparison."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from diffusion_lab.contracts import added, conventions
from diffusion_lab.errors import UserError
from diffusion_lab.fingerprints import (
    allowed_fields,
    describe,
    describe_differences,
    differences,
    digest,
    fields_set_by,
    flat,
)
from diffusion_lab.process import CosineSchedule, CustomSchedule, GaussianProcess
from diffusion_lab.samplers import DDIM, Churn, Heun, TrailingTimes

PROCESS = GaussianProcess(CosineSchedule(100))


def fingerprint(**changes: object) -> dict[str, object]:
    return {"num_samples": 50, "sampler": {"name": "DDIM", "num_steps": 10, "eta": 0.0}, "seed": 0} | changes


def test_an_object_is_described_by_its_class_name_and_its_fields() -> None:
    found = describe(DDIM(PROCESS, num_steps=10, eta=0.5, time_grid=TrailingTimes()), omit=("process",))
    assert found == {
        "name": "DDIM", "num_steps": 10, "eta": 0.5, "time_grid": {"name": "TrailingTimes"},
        "clipping": {"name": "StaticClipping"},
    }  # fmt: skip


def test_different_settings_have_different_digests_at_any_depth() -> None:
    samplers = [
        Heun(PROCESS, num_steps=5, churn=churn)
        for churn in (Churn(amount=0.0), Churn(amount=40.0), Churn(sigma_max=50.0))
    ]
    assert len({digest(describe(sampler, omit=("process",))) for sampler in samplers}) == 3


def test_long_lists_and_tensors_are_described_by_their_sha256() -> None:
    betas = [0.01 * k for k in range(1, 41)]
    found = describe(CustomSchedule(betas))
    assert found["variances"]["length"] == 40
    assert found["variances"] == describe(torch.tensor(betas, dtype=torch.float64))
    assert describe(CustomSchedule([*betas[:-1], 0.5]))["variances"]["sha256"] != found["variances"]["sha256"]
    assert describe([1, 2]) == [1, 2]


def test_numbers_that_are_not_finite_are_strings() -> None:
    found = describe(Churn(), omit=())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert describe(math.nan) == describe(math.nan) == "nan"


@dataclass(frozen=True)
class Part:
    scale: float = 1.0
    reversed: bool = added(default=False)


@dataclass(frozen=True)
class Whole:
    part: Part = Part()
    epsilon: float = added(default=1e-5)


def test_a_setting_that_a_later_version_added_is_described_unless_it_has_its_default() -> None:
    part = {"name": f"{__name__}.Part", "scale": 1.0}
    before = {"name": f"{__name__}.Whole", "part": part}
    assert describe(Whole()) == before
    assert describe(Whole(Part(reversed=True), 1e-6)) == {
        **before,
        "part": part | {"reversed": True},
        "epsilon": 1e-6,
    }
    assert conventions(Whole()) == {}
    assert conventions(Whole(Part(2.0, reversed=True), 1e-6)) == {"reversed": True, "epsilon": 1e-6}


def test_flat_fields_have_dotted_names() -> None:
    assert flat(fingerprint()) == {
        "num_samples": 50, "sampler.name": "DDIM", "sampler.num_steps": 10, "sampler.eta": 0.0, "seed": 0,
    }  # fmt: skip


def test_differences_are_by_field_and_can_be_allowed_by_name() -> None:
    one, other = fingerprint(), fingerprint(sampler={"name": "DDIM", "num_steps": 20, "eta": 0.0}, seed=3)
    assert differences([one, other]) == {"sampler.num_steps": [10, 20], "seed": [0, 3]}
    assert differences([one, other], ["sampler"]) == {"seed": [0, 3]}
    assert differences([one, other], ["sampler.num_steps", "seed"]) == {}
    assert differences([one, other], ["samp"]) == differences([one, other])
    assert differences([one, one]) == {}


def test_a_missing_field_differs_from_none() -> None:
    assert differences([fingerprint(label=None), fingerprint()]) == {"label": [None, "missing"]}


def test_for_different_classes_only_the_class_name_is_a_difference() -> None:
    other = fingerprint(sampler={"name": "Heun", "num_steps": 10, "churn": {"name": "Churn", "amount": 0.0}})
    assert differences([fingerprint(), other]) == {"sampler.name": ["DDIM", "Heun"]}


def test_a_difference_is_described_by_its_field_and_two_values_with_their_owners() -> None:
    other = fingerprint(sampler={"name": "DDIM", "num_steps": 20, "eta": 0.0}, seed=1)
    found = differences([fingerprint(), fingerprint(), other])
    assert describe_differences(found, "abc") == "sampler.num_steps is 10 in a and 20 in c; seed is 0 in a and 1 in c"


def test_different_weights_are_described_by_their_names() -> None:
    average = {"kind": "ema", "name": "main", "decay": 0.9}
    found = differences([fingerprint(weights={"kind": "raw"}), fingerprint(weights=average)])
    assert describe_differences(found, "ab") == "weights are raw in a and main (an average) in b"


def test_only_fields_of_fingerprints_can_be_allowed() -> None:
    assert allowed_fields(["sampler.num_steps", "seed"]) == ["sampler.num_steps", "seed"]
    assert allowed_fields("seed") == ["seed"]  # also without brackets
    assert allowed_fields(None) == allowed_fields([]) == []
    with pytest.raises(
        UserError, match=r"`allow` must list fingerprint fields \(num_samples, .*, got sampl.eta; perhaps"
    ):
        allowed_fields(["seed", "sampl.eta"])
    with pytest.raises(UserError, match="got time_grid; time_grid is recorded in sampler"):
        allowed_fields("time_grid")


@pytest.mark.parametrize(
    ("swept", "included", "excluded"),
    [
        ("sampler.num_steps", "sampler.num_steps", "seed"),
        ("sampler", "sampler.clipping", "schedule"),
        ("time_grid", "sampler.time_grid", "schedule"),
        ("run", "schedule", "sampler"),
        ("run", "weights.decay", "weights.kind"),
        ("seed", "seed", "num_samples"),
        ("trainer.precision", "precision", "seed"),
        ("weights", "weights.name", "sampler"),
        ("+features", "features.name", "reference.split"),
        ("schedule", "schedule.name", "seed"),
    ],
)
def test_only_fields_that_the_swept_setting_determines_may_differ(swept: str, included: str, excluded: str) -> None:
    def different(field: str) -> list[dict[str, object]]:
        head, _, rest = field.partition(".")
        return [{head: {rest: value}} if rest else {head: value} for value in (1, 2)]

    assert differences(different(included), fields_set_by([swept])) == {}
    assert differences(different(excluded), fields_set_by([swept])) != {}

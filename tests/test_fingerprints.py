"""May two numbers stand beside each other?"""

import json
import math

import pytest
import torch

from diffusion_lab.fingerprints import (
    IncomparableError,
    describe,
    differences,
    digest,
    fields_set_by,
    flat,
    require_comparable,
)
from diffusion_lab.process import CosineSchedule, CustomSchedule, GaussianProcess
from diffusion_lab.samplers import DDIM, Churn, Heun, StaticClipping, TrailingTimes

PROCESS = GaussianProcess(CosineSchedule(100))


def of(**changes: object) -> dict[str, object]:
    return {"num_samples": 50, "sampler": {"name": "DDIM", "num_steps": 10, "eta": 0.0}, "seed": 0} | changes


def test_an_object_is_its_name_and_its_settings() -> None:
    found = describe(DDIM(PROCESS, num_steps=10, eta=0.5, time_grid=TrailingTimes()), omit=("process",))
    assert found == {
        "name": "DDIM", "num_steps": 10, "eta": 0.5, "time_grid": {"name": "TrailingTimes"},
        "clipping": {"name": "StaticClipping", **vars(StaticClipping())},
    }  # fmt: skip


def test_unlike_settings_have_unlike_descriptions_however_deep() -> None:
    samplers = [
        Heun(PROCESS, num_steps=5, churn=churn)
        for churn in (Churn(amount=0.0), Churn(amount=40.0), Churn(sigma_max=50.0))
    ]
    assert len({digest(describe(sampler, omit=("process",))) for sampler in samplers}) == 3


def test_long_lists_and_tensors_are_known_by_their_hash() -> None:
    betas = [0.01 * k for k in range(1, 41)]
    found = describe(CustomSchedule(betas))
    assert found["variances"]["length"] == 40
    assert found["variances"] == describe(torch.tensor(betas, dtype=torch.float64))
    assert describe(CustomSchedule([*betas[:-1], 0.5]))["variances"]["sha256"] != found["variances"]["sha256"]
    assert describe([1, 2]) == [1, 2]


def test_numbers_that_are_not_finite_are_texts() -> None:
    found = describe(Churn(), omit=())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert describe(math.nan) == describe(math.nan) == "nan"


def test_fields_have_dotted_names() -> None:
    assert flat(of()) == {
        "num_samples": 50, "sampler.name": "DDIM", "sampler.num_steps": 10, "sampler.eta": 0.0, "seed": 0,
    }  # fmt: skip


def test_differences_are_found_field_by_field_and_allowed_by_name() -> None:
    one, other = of(), of(sampler={"name": "DDIM", "num_steps": 20, "eta": 0.0}, seed=3)
    assert differences([one, other]) == {"sampler.num_steps": [10, 20], "seed": [0, 3]}
    assert differences([one, other], ["sampler"]) == {"seed": [0, 3]}
    assert differences([one, other], ["sampler.num_steps", "seed"]) == {}
    assert differences([one, other], ["samp"]) == differences([one, other])
    assert differences([one, one]) == {}


def test_a_field_that_one_lacks_differs_also_from_null() -> None:
    assert differences([of(label=None), of()]) == {"label": [None, "nothing"]}


def test_of_unlike_kinds_the_kind_alone_is_said() -> None:
    other = of(sampler={"name": "Heun", "num_steps": 10, "churn": {"amount": 0.0}})
    assert differences([of(), other]) == {"sampler.name": ["DDIM", "Heun"]}


def test_unlike_numbers_are_refused_with_the_field_the_values_and_the_remedy() -> None:
    require_comparable("fid_10", {"a": of(), "b": of()})
    other = of(sampler={"name": "DDIM", "num_steps": 20, "eta": 0.0}, seed=1)
    sentence = (
        r"fid_10 cannot be compared: sampler.num_steps is 10 in a and 20 in c \(seed differ too\); "
        r"allow=\[sampler,seed\] compares them nevertheless"
    )
    with pytest.raises(IncomparableError, match=sentence):
        require_comparable("fid_10", {"a": of(), "b": of(), "c": other})
    require_comparable("fid_10", {"a": of(), "c": other}, ["sampler", "seed"])


@pytest.mark.parametrize(
    ("swept", "covered", "apart"),
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
def test_what_is_swept_may_differ_and_nothing_else(swept: str, covered: str, apart: str) -> None:
    def unlike(field: str) -> list[dict[str, object]]:
        head, _, rest = field.partition(".")
        return [{head: {rest: value}} if rest else {head: value} for value in (1, 2)]

    assert differences(unlike(covered), fields_set_by([swept])) == {}
    assert differences(unlike(apart), fields_set_by([swept])) != {}

"""Validation of arguments against signatures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from diffusion_lab.config.compose import error_message
from diffusion_lab.config.validation import argument_problems, missing_targets, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.samplers import Sampler


class Target:
    def __init__(
        self,
        size: int,
        scale: float = 1.0,
        *,
        kind: Literal["a", "b"] = "a",
        sides: Sequence[int] = (),
        on: bool = True,
    ) -> None: ...


def problems(**arguments: Any) -> list[str]:
    return list(argument_problems({"_target_": f"{__name__}.Target", **arguments}, "thing"))


def test_valid_arguments_have_no_problems() -> None:
    assert problems(size=3, scale=2, kind="b", sides=[1, 2], on=False) == []


def test_every_unknown_argument_is_reported_with_the_accepted_ones() -> None:
    found = problems(size=3, scal=2.0, color="red")
    assert found[0] == (
        "thing.scal is not a setting of Target; perhaps you mean scale; accepted settings are size, scale, kind, "
        "sides, on"
    )
    assert found[1].startswith("thing.color is not a setting of Target")


def test_a_missing_argument_is_reported_unless_the_call_is_partial() -> None:
    assert problems() == ["thing.size is missing"]
    assert problems(_partial_=True) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"size": "abc"}, "thing.size must be a whole number, got abc"),
        ({"size": 1.5}, "thing.size must be a whole number, got 1.5"),
        ({"size": True}, "thing.size must be a whole number, got True"),
        ({"size": 1, "scale": "x"}, "thing.scale must be a number, got x"),
        ({"size": 1, "kind": "c"}, "thing.kind must be a or b, got c"),
        ({"size": 1, "sides": ["x"]}, "thing.sides must be a list, got ['x']"),
        ({"size": 1, "on": "yes"}, "thing.on must be true or false, got yes"),
    ],
)
def test_values_of_the_wrong_type_are_reported(argument: dict[str, Any], message: str) -> None:
    assert problems(**argument) == [message]


def test_problems_are_found_at_any_depth_and_in_lists() -> None:
    node = {"parts": [{"_target_": f"{__name__}.Target", "size": "x"}]}
    assert list(argument_problems(node, "")) == ["parts.0.size must be a whole number, got x"]


def test_a_target_that_cannot_be_imported_is_reported() -> None:
    (message,) = argument_problems({"_target_": "diffusion_lab.missing.Class"}, "model")
    assert message.startswith(
        "model._target_ must be the import path of a class or function, got diffusion_lab.missing.Class"
    )


@pytest.mark.parametrize(
    ("target", "end"),
    [
        ("torhc.nn.Linear", "(torhc is not installed); perhaps you mean torch"),
        ("diffusion_lab.networks.UNett", "(diffusion_lab.networks has no UNett); perhaps you mean UNet"),
        ("diffusion_lab.netwroks.UNet", "(diffusion_lab has no netwroks); perhaps you mean networks"),
        ("mine.Net", "(mine is not installed); PYTHONPATH=. finds it"),
    ],
)
def test_a_mistyped_target_is_reported_with_a_close_name(
    target: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    (message,) = argument_problems({"_target_": target}, "model")
    assert message.endswith(f", got {target} {end}")


def test_an_object_without_a_class_is_reported() -> None:
    config = OmegaConf.create({"model": {"width": 3, "depth": 2}, "sampler": {"_target_": "my.Sampler"}, "ema": None})
    (message,) = missing_targets(config)
    assert message.startswith("model._target_ must be the import path of a class, such as my_project.MyClass")
    assert message.endswith("got only width, depth")


def test_all_problems_are_raised_in_one_message() -> None:
    with pytest.raises(UserError, match=r"^one; two\.$"):
        raise_problems(["one", "two"])
    raise_problems([])


def test_a_problem_of_a_repeated_node_is_reported_once() -> None:
    node, scale = {"_target_": "nowhere.Network"}, {"_target_": f"{__name__}.Target", "size": 1, "scale": "x"}
    found = list(argument_problems({"guidance": {"inner": node, "scale": scale}, "model": node, "scale": scale}, ""))
    assert len(found) == 4
    with pytest.raises(UserError) as caught:
        raise_problems([*found, "seed must be a number, got x"])
    assert str(caught.value) == (
        "model._target_ must be in an installed library or in a folder on PYTHONPATH, got nowhere.Network (nowhere is "
        "not installed); "
        "scale.scale must be a number, got x; seed must be a number, got x."
    )


def test_the_message_of_an_error_of_the_user_stays_unchanged() -> None:
    assert error_message(UserError("data.path must exist, got /two  spaces."), "train").endswith("/two  spaces.")


class OwnSampler(Sampler):
    """A sampler that is not a dataclass, so that it has no settings."""

    def sample(self, *arguments: Any) -> Any: ...


@dataclass
class NotFrozen(OwnSampler):
    num_steps: int | None = None


def test_a_sampler_that_is_no_dataclass_is_reported_instead_of_its_settings() -> None:
    node = {"_target_": f"{__name__}.OwnSampler", "num_steps": 9, "time_grid": None}
    (message,) = argument_problems(node, "sampler")
    start = "sampler: OwnSampler must be a dataclass to be a diffusion_lab.Sampler; write `@dataclass(frozen=True)` "
    assert message.startswith(start)
    with pytest.raises(UserError, match=r"for each setting\.$"):
        raise_problems([message])
    (message,) = argument_problems(node | {"_target_": f"{__name__}.NotFrozen"}, "sampler")
    assert message.startswith("sampler: NotFrozen must be a frozen dataclass to be a diffusion_lab.Sampler (because")


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        ("my_euler", "got my_euler; perhaps you mean euler; --config-dir FOLDER adds the choices of your own folder."),
        ("midpoint", "got midpoint; --config-dir FOLDER adds the choices of your own folder."),
        ("eulre", "got eulre; perhaps you mean euler."),
    ],
)
def test_an_unknown_choice_that_is_no_mistyped_one_has_a_hint_at_config_folders(choice: str, hint: str) -> None:
    error = MissingConfigException("", f"sampler/{choice}", ["ddim", "euler"])
    assert error_message(error, "sample") == f"sampler must be one of ddim, euler, {hint}"

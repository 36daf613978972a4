"""Arguments against signatures."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError


class Thing:
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
    return list(argument_problems({"_target_": f"{__name__}.Thing", **arguments}, "thing"))


def test_right_arguments_are_no_problem() -> None:
    assert problems(size=3, scale=2, kind="b", sides=[1, 2], on=False) == []


def test_every_wrong_argument_is_named_with_the_accepted_ones() -> None:
    found = problems(size=3, scal=2.0, colour="red")
    assert found[0] == (
        "thing.scal is not a setting of Thing: accepted are size, scale, kind, sides, on; perhaps you mean scale"
    )
    assert found[1].startswith("thing.colour is not a setting of Thing")


def test_a_missing_argument_is_named_unless_the_call_is_partial() -> None:
    assert problems() == ["thing.size is missing"]
    assert problems(_partial_=True) == []


@pytest.mark.parametrize(
    ("argument", "sentence"),
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
def test_values_of_the_wrong_type_are_refused(argument: dict[str, Any], sentence: str) -> None:
    assert problems(**argument) == [sentence]


def test_mistakes_are_found_below_lists_and_groups() -> None:
    node = {"parts": [{"_target_": f"{__name__}.Thing", "size": "x"}]}
    assert list(argument_problems(node, "")) == ["parts.0.size must be a whole number, got x"]


def test_a_target_that_cannot_be_imported_is_named() -> None:
    (sentence,) = argument_problems({"_target_": "diffusion_lab.nothing.Here"}, "model")
    assert sentence.startswith(
        "model._target_ must name something that can be imported, got diffusion_lab.nothing.Here"
    )


def test_all_problems_end_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^one; two\.$"):
        raise_problems(["one", "two"])
    raise_problems([])

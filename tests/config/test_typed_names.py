"""Error messages name a setting as users type it, not the argument of a class that receives its value."""

import pytest
from omegaconf import OmegaConf

from diffusion_lab.config.typed_names import name_as_typed, typed_name
from diffusion_lab.errors import ArgumentError, UserError

CONFIG = OmegaConf.create(
    {
        "data": {
            "batch_size": 8, "num_held_out": 0,
            "store": {"selection": {"num_held_out": "${data.num_held_out}"}},
            "datamodule": {
                "batch_size": "${data.batch_size}", "low_resolution": "${low_resolution}", "seed": 3,
                "rounded": "${round:${data.batch_size}}", "store": "${data.store}",
            },
        },
        "low_resolution": {"resolution": "???"}, "nothing": None, "missing": "???",
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data.datamodule.batch_size", "data.batch_size"),
        ("data.datamodule.low_resolution.resolution", "low_resolution.resolution"),
        ("data.datamodule.store.selection.num_held_out", "data.num_held_out"),
        ("data.datamodule.seed", "data.datamodule.seed"),
        ("data.datamodule.rounded", "data.datamodule.rounded"),
        ("data.datamodule.unknown.part", None),
        ("nothing.part", None),
        ("missing.part", None),
    ],
)
def test_a_setting_that_refers_to_another_is_named_as_the_other(path: str, name: str | None) -> None:
    assert typed_name(path, CONFIG) == name


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("data.datamodule: batch_size must be at least 1, got 0.", "data.batch_size must be at least 1, got 0."),
        (
            "a must be 1; data.datamodule.batch_size must be a whole number, got b.",
            "a must be 1; data.batch_size must be a whole number, got b.",
        ),
        ("data.datamodule: seed must be 4, got None.", "data.datamodule.seed must be 4, got null."),
        ("seed must be a whole number, got .", "seed must be a whole number, got an empty value."),
        ("`data.datamodule: batch_size must be` is text.", "`data.datamodule: batch_size must be` is text."),
        ("data.datamodule: num_workers must be 0.", "data.datamodule: num_workers must be 0."),
    ],
)
def test_errors_are_raised_with_the_names_of_settings(message: str, expected: str) -> None:
    with pytest.raises(UserError) as raised, name_as_typed(CONFIG):
        raise UserError(message)
    assert str(raised.value) == expected


def test_an_error_keeps_its_class() -> None:
    with pytest.raises(ArgumentError, match=r"^data\.batch_size must be 1\.$"), name_as_typed(CONFIG):
        raise ArgumentError("data.datamodule: batch_size must be 1.")
    with pytest.raises(ValueError, match=r"^data\.datamodule: batch_size must be 1\.$"), name_as_typed(CONFIG):
        raise ValueError("data.datamodule: batch_size must be 1.")  # of code, not of the user

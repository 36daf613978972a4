"""Arguments of lightning.Trainer in the settings of a run."""

import copy
from contextlib import nullcontext
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs.setup.trainer_settings import apply_trainer_settings, require_accelerator


@cache
def composed(*choices: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=["run_folder=somewhere", *choices])


def applied(*overrides: str, choices: tuple[str, ...] = ()) -> DictConfig:
    """Return a config with overrides after `apply_trainer_settings`.  choices: choices of config groups."""
    config = copy.deepcopy(composed(*choices))
    OmegaConf.set_struct(config, False)
    config.merge_with_dotlist(list(overrides))
    apply_trainer_settings(config, overrides)
    return config


def test_epochs_become_steps_that_other_settings_follow() -> None:
    config = applied("trainer.max_epochs=3", "data.batch_size=64", choices=("lr_schedule=cosine",))
    assert config.trainer.max_steps == 469  # 3 * 10000 / 64 = 468.75
    assert config.lr_schedule.num_decay_steps == 469
    assert config.trainer.max_epochs == -1


@pytest.mark.parametrize(
    ("override", "max_batches"),
    [
        ("trainer.limit_train_batches=3", 3),
        ("trainer.limit_train_batches=1", 1),
        ("trainer.limit_train_batches=1.0", None),
        ("trainer.limit_train_batches=0.5", 62),  # half of 125 batches of 80 images
        ("trainer.overfit_batches=2", 2),
        ("trainer.overfit_batches=0", None),
    ],
)
def test_limits_of_batches_restrict_the_image_set(override: str, max_batches: int | None) -> None:
    config = applied(override, "data.batch_size=80")
    assert config.data.datamodule.max_batches == max_batches
    assert override.split("=")[0].split(".")[1] not in config.trainer


def test_epochs_of_a_limited_set_are_shorter() -> None:
    config = applied("trainer.max_epochs=10", "trainer.limit_train_batches=3", "data.batch_size=50")
    assert config.trainer.max_steps == 30


def test_a_number_of_steps_may_be_typed_with_an_exponent() -> None:
    steps = applied("trainer.max_steps=1e5").trainer.max_steps
    assert (steps, type(steps)) == (100_000, int)


def test_the_data_set_suggests_the_number_of_steps_and_the_device_does_not() -> None:
    for choice in ("auto", "cpu", "gpu", "ddp"):
        assert composed(f"trainer={choice}").trainer.max_steps == 1000
        assert composed(f"trainer={choice}", "data=cifar10").trainer.max_steps == 200_000
    assert composed("trainer=debug").trainer.max_steps == 5
    assert composed("experiment=quickstart").trainer.max_steps == 2200


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_steps=3", "trainer.max_epochs=2"], "trainer.max_epochs cannot both be given, got 3 and 2"),
        (["trainer.max_steps=1e2k"], "trainer.max_steps must be a whole number of at least 1, got 1e2k"),
        (["trainer.max_steps=9", "data.max_steps=5"], "gives trainer.max_steps .here 9., got data.max_steps=5; set"),
        (["trainer.max_steps=1.5"], "trainer.max_steps must be a whole number of at least 1, got 1.5"),
        (["trainer.max_steps=.inf"], "trainer.max_steps must be a whole number of at least 1, got inf"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be a whole number of at least 1, got 0"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches must be a whole number of at least 1, got 0"),
        (["trainer.overfit_batches=-1"], "trainer.overfit_batches must be a whole number of at least 1, got -1"),
        (["trainer.logger=true"], "trainer.logger is not accepted, because the group `logger` .*, got True"),
        (["trainer.barebones=true"], "trainer.barebones is not accepted, because a run keeps"),
        (["trainer.min_steps=5"], "trainer.min_steps is not accepted, because training ends after trainer.max_steps"),
    ],
)  # fmt: skip
def test_settings_that_contradict_the_framework_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        applied(*overrides)


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("gpu", (), "trainer.accelerator must be auto or cpu on this machine, where torch finds no GPU, got gpu."),
        ("cuda", ("mps",), "trainer.accelerator must be .* where torch finds no CUDA device, got cuda."),
        ("mps", ("cuda",), "trainer.accelerator must be .* where torch finds no MPS device, got mps."),
        ("gpu", ("mps",), ""),
        ("cuda", ("cuda",), ""),
        ("auto", (), ""),
        ("cpu", (), ""),
    ],
)
def test_an_accelerator_that_this_machine_lacks_is_rejected(
    name: str, found: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in found)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: "mps" in found)
    with pytest.raises(UserError, match=f"^{message}$") if message else nullcontext():
        require_accelerator(name)

"""Settings of classes from torch and Lightning that conf/ does not list completely."""

import logging

import pytest
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import resolvers
from diffusion_lab.config.library_classes import drop_unused_settings, with_plus, without_plus
from diffusion_lab.config.overrides import identifying_overrides, require_single_choices
from diffusion_lab.errors import UserError


def config(target: str) -> DictConfig:
    node = {"_target_": target, "lr": 0.1, "betas": [0.9, 0.99], "fused": True, "decay_matrices_only": False}
    struct = OmegaConf.create({"optimizer": node})
    OmegaConf.set_struct(struct, True)
    return struct


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("name", ["hydra.launcher.more", "hydra.launcher.more.constraint"])
def test_options_of_sbatch_need_no_plus_in_any_command(name: str, command: str) -> None:
    for typed in (f"{name}=a", f"+{name}=a", f"++{name}=a"):
        assert with_plus(command, [typed]) == [f"++{name}=a"]
        assert without_plus(typed) == f"{name}=a"
    assert with_plus(command, ["hydra.launcher.moree=a"]) == ["hydra.launcher.moree=a"]


def test_arguments_of_library_classes_need_no_plus_in_training_commands_only() -> None:
    overrides = ["optimizer.eps=1e-6", "+trainer.max_time=1", "seed=1", "optimizer=sgd", "~optimizer.fused"]
    added = ["++optimizer.eps=1e-6", "++trainer.max_time=1", "seed=1", "optimizer=sgd", "~optimizer.fused"]
    assert with_plus("train", overrides) == with_plus("train", added) == added
    assert with_plus("prepare", overrides) == added  # it accepts what train accepts
    assert with_plus("sample", overrides) == overrides
    assert [without_plus(override) for override in added[:2]] == ["optimizer.eps=1e-6", "trainer.max_time=1"]
    assert identifying_overrides(added) == identifying_overrides([overrides[0], "trainer.max_time=1", *overrides[2:]])


def test_another_class_keeps_the_settings_that_it_has_and_the_others_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    other = config("torch.optim.RAdam")
    drop_unused_settings(other, ["optimizer._target_=torch.optim.RAdam"])
    assert list(other.optimizer) == ["_target_", "lr", "betas", "decay_matrices_only"]
    assert "optimizer: RAdam does not take fused (set in conf/)." in caplog.text


def test_given_settings_and_the_class_of_conf_stay() -> None:
    given = config("torch.optim.RAdam")
    drop_unused_settings(given, ["optimizer._target_=torch.optim.RAdam", "++optimizer.fused=true"])
    assert given.optimizer.fused  # the validation of arguments reports it
    unchanged = config("torch.optim.RAdam")
    drop_unused_settings(unchanged, ["optimizer.lr=1"])
    assert "fused" in unchanged.optimizer


def test_a_class_that_is_no_optimizer_is_rejected() -> None:
    with pytest.raises(UserError, match=r"must be a subclass of torch.optim.Optimizer .*, got torch.nn.Linear"):
        drop_unused_settings(config("torch.nn.Linear"), ["optimizer._target_=torch.nn.Linear"])


def test_two_choices_of_one_group_are_rejected() -> None:
    require_single_choices(["lr_schedule=wsd", "lr_schedule=wsd", "seed=1", "seed=2"])
    with pytest.raises(UserError, match="lr_schedule must be given once, got lr_schedule=linear and lr_schedule=wsd"):
        require_single_choices(["lr_schedule=linear", "lr_schedule=wsd"])


@pytest.mark.parametrize(
    ("has_gpu", "capability", "accelerator", "precision"),
    [(True, 9.0, "cuda", "bf16-mixed"), (True, 7.5, "cuda", "32-true"), (False, 0.0, "cpu", None)],
)
def test_the_default_device_and_precision_depend_on_the_machine(
    has_gpu: bool, capability: float, accelerator: str, precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolvers, "_has_gpu", lambda: has_gpu)
    monkeypatch.setattr(resolvers, "_compute_capability", lambda: capability)
    chosen = OmegaConf.create({"accelerator": "${fastest_accelerator:}", "precision": "${fastest_precision:}"})
    expected = precision or OmegaConf.create({"p": "${fastest_cpu_precision:}"}).p
    assert (chosen.accelerator, chosen.precision) == (accelerator, expected)


@pytest.mark.parametrize("value", ["", "-1"])
def test_hidden_gpus_are_not_used(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert not resolvers._has_gpu()

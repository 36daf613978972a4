"""Optimizer states in checkpoints: checks, because another person may have written them, and changes of settings."""

import logging
import math
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from diffusion_lab.training.lr_schedules import LRSchedule, TorchLRSchedule, build_scheduler
from diffusion_lab.training.optimizers import OptimizerFactory, match_memory_format

logger = logging.getLogger(__name__)

OF_ADAM = ("step", "exp_avg", "exp_avg_sq")

OPTIMIZER_KEY = "optimizer_settings"
"""Key of a checkpoint under which the settings of the optimizer and of its learning-rate schedule are stored."""

OPTIMIZER_OF_VERSION_0_3 = "torch.optim.adamw.AdamW"


def has_size_of(checkpoint: dict[str, Any], network: nn.Module) -> bool:
    """Return whether the optimizer in a checkpoint has as many parameters as that of a network."""
    groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
    return sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in network.parameters())


def change_settings(
    checkpoint: dict[str, Any],
    factory: OptimizerFactory,
    lr_schedule: LRSchedule | TorchLRSchedule,
    network: nn.Module,
    step: int,
) -> None:
    """Give the optimizer and scheduler states in a checkpoint the settings of this run, for a fork with others.

    The moments are kept if the optimizers of both runs have the same kind of state and the same parameter groups;
    if they differ, the optimizer starts with a new state.
    step: number of steps that the checkpoint has completed.
    """
    optimizer = factory(network)
    keys = {*optimizer.param_groups[0]}
    scheduler = build_scheduler(lr_schedule, optimizer, step)
    new, (saved,) = optimizer.state_dict(), checkpoint["optimizer_states"]
    saved_name = str(checkpoint.get(OPTIMIZER_KEY, {}).get("optimizer", OPTIMIZER_OF_VERSION_0_3))
    same_groups = [g["params"] for g in new["param_groups"]] == [g["params"] for g in saved["param_groups"]]
    if factory.can_continue(saved_name) and same_groups:
        set_by_scheduler = {*optimizer.param_groups[0]} - keys
        names = {*factory.argument_names, *set_by_scheduler, "lr"}
        for group, wanted in zip(saved["param_groups"], new["param_groups"], strict=True):
            group |= {name: wanted[name] for name in names & wanted.keys()}
    else:
        logger.info("the state of the optimizer in the checkpoint (%s) is not used.", saved_name)
        checkpoint["optimizer_states"] = [new]
    checkpoint["lr_schedulers"] = [scheduler.state_dict()]


def check_loaded_states(optimizer: Optimizer) -> Optimizer:
    """Make `load_state_dict` of an optimizer raise ValueError for a state that does not fit its parameters.

    The fused kernels of torch do not check sizes: they write beyond the end of a smaller tensor. Optimizers of other
    packages need trust, and are not checked.
    """
    if not type(optimizer).__module__.startswith(("torch.optim", "diffusion_lab.")):
        return optimizer
    optimizer.register_load_state_dict_pre_hook(_with_own_settings)
    optimizer.register_load_state_dict_post_hook(_require_states_of_parameters)
    return optimizer


def _with_own_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state whose settings are those of this run, except for numbers that a learning-rate schedule changes."""
    own, saved = optimizer.param_groups, state["param_groups"]
    if len(own) != len(saved):
        return state  # torch refuses it
    groups = [
        {name: group[name] if name == "params" else _setting(name, value, group.get(name, value))
         for name, value in of_run.items()}
        for of_run, group in zip(own, saved, strict=True)
    ]  # fmt: skip
    return state | {"param_groups": groups}


def _setting(name: str, own: Any, saved: Any) -> Any:
    if isinstance(own, (tuple, list)) and isinstance(saved, (tuple, list)) and len(own) == len(saved):
        return type(own)(_setting(name, *pair) for pair in zip(own, saved, strict=True))
    if isinstance(own, bool) or not isinstance(own, (int, float)) or (isinstance(own, int) and type(saved) is int):
        return own
    if not isinstance(saved, (int, float)) or not math.isfinite(saved):
        raise ValueError(f"{name} in the state of the optimizer must be a finite number, got {str(saved)[:50]}")
    return float(saved)


def _require_states_of_parameters(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        if "fused" not in group:
            continue  # other optimizers have states of other shapes, and raise errors for unexpected ones
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "betas" in group and any(name in state for name in OF_ADAM):
                _require_names(state)
            for name, value in state.items():
                _require_shape(name, value, parameter)
    match_memory_format(optimizer)  # the kernels also do not check strides


def _require_names(state: dict[str, Any]) -> None:
    if missing := [name for name in OF_ADAM if not isinstance(state.get(name), Tensor)]:
        raise ValueError(f"the state of the optimizer must contain {missing[0]} of each parameter")


def _require_shape(name: str, value: Any, parameter: Tensor) -> None:
    if isinstance(value, Tensor) and not (value.numel() == 1 if name == "step" else value.shape == parameter.shape):
        expected = "one element" if name == "step" else f"the shape {list(parameter.shape)} of its parameter"
        raise ValueError(f"{name} in the state of the optimizer must have {expected}, got {list(value.shape)}")

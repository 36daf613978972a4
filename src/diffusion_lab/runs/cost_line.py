"""The line about the cost of a run, and what to set instead if a run on a CPU would take hours."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from diffusion_lab.config.compose import command_name, compose_config
from diffusion_lab.config.overrides import override_key, quote
from diffusion_lab.errors import UserError
from diffusion_lab.runs.cost import Cost, describe, duration, estimate, measuring_seconds, steps_in_an_hour
from diffusion_lab.runs.load import build_module, instantiate_node, resolve
from diffusion_lab.runs.resume import StartingPoint
from diffusion_lab.runs.training_setup import Run

logger = logging.getLogger(__name__)

MANY_SECONDS = 3600
"""Duration of a run on a CPU above which the line names settings for a shorter run."""

TRIAL_STEPS = 20
"""Number of steps up to which a run is a trial, whose cost is not estimated: its third step shows the duration."""

QUICK_NETWORKS = {"train": "unet_quick", "train_classifier": "half_unet_quick"}


def print_cost(run: Run, start: StartingPoint, overrides: Sequence[str]) -> None:
    """Print the estimated cost of a run on rank 0, unless the operations of its network cannot be counted.

    overrides: overrides of the command line.
    """
    trainer = run.trainer
    num_steps = trainer.max_steps - start.step
    if not trainer.is_global_zero or trainer.fast_dev_run or 0 < num_steps <= TRIAL_STEPS:
        return
    try:
        with torch.random.fork_rng(devices=[]):  # a second network is built for the advice
            line = _line(run, start, overrides, num_steps)
    except Exception as error:  # an estimate must not end a run, for example if the device has no free memory
        logger.debug("the cost of the run could not be estimated: %s", error)
        return
    if line is not None:
        print(line, flush=True)


def _line(run: Run, start: StartingPoint, overrides: Sequence[str], num_steps: int) -> str | None:
    """Return the line about the cost of a run; None if the operations of its network cannot be counted."""
    trainer = run.trainer
    if (cost := estimate(run.module, run.datamodule, trainer)) is None:
        return None
    measuring = measuring_seconds(cost, trainer, run.module, start.step)
    line = f"cost: {describe(cost, num_steps, measuring)}"
    if trainer.strategy.root_device.type == "cpu" and cost.seconds_per_step * num_steps + measuring > MANY_SECONDS:
        advice = list(_advice(run, cost, start, overrides))
        line += f"; shorter on a CPU: {', '.join(advice)}" if advice else ""
    return line


def _advice(run: Run, cost: Cost, start: StartingPoint, overrides: Sequence[str]) -> Iterator[str]:
    """Yield settings that make a run shorter, each with the duration of the run."""
    num_steps = run.trainer.max_steps - start.step
    if start.checkpoint is None and (quick := _quick_network(run, start.config, overrides)) is not None:
        name, other = quick
        if other.seconds_per_step < cost.seconds_per_step / 2:
            seconds = other.seconds_per_step * num_steps
            seconds += measuring_seconds(other, run.trainer, run.module, start.step)
            yield f"model={name} (about {duration(seconds)})"
    if (steps := start.step + steps_in_an_hour(cost)) < run.trainer.max_steps:
        yield f"trainer.max_steps={steps} (about an hour without sample images and metrics)"


def _quick_network(run: Run, config: DictConfig, overrides: Sequence[str]) -> tuple[str, Cost] | None:
    """Return the name of the quick network and the cost of the run with it; None if it does not fit the settings."""
    name, command = QUICK_NETWORKS.get(command_name()), command_name()
    if name is None:
        return None
    kept = [override for override in overrides if not override_key(override).startswith("model")]
    folder = f"run_folder={quote(str(Path(config.run_folder)))}"
    try:
        other = resolve(compose_config(command, [*kept, f"model={name}", folder]))
        module = build_module(other, instantiate_node(other.model, "model"))
    except UserError:
        return None
    cost = estimate(module, run.datamodule, run.trainer)
    return None if cost is None else (name, cost)

"""Arguments of lightning.Trainer that this framework expresses in its own settings, or that contradict it.

The stream of training batches is endless and a function of the step, so that a run resumes at any step. Lightning's
epochs and limits of batches would repeat the random numbers of the same steps instead.
"""

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_lab.distributed import launch
from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import instantiate_node, resolve

REFUSED = {
    "logger": "the group `logger` selects the loggers",
    "callbacks": "the group `callbacks` sets the callbacks",
    "default_root_dir": "hydra.run.dir sets the run folder",
    "enable_checkpointing": "callbacks.save_last writes the checkpoints",
    "enable_progress_bar": "callbacks.progress=null disables the progress display",
    "min_epochs": "training ends after trainer.max_steps",
    "min_steps": "training ends after trainer.max_steps",
    "val_check_interval": "callbacks.measure_distance.every_n_steps sets how often a run measures its samples",
    "check_val_every_n_epoch": "callbacks.measure_distance.every_n_steps sets how often a run measures its samples",
    "reload_dataloaders_every_n_epochs": "the order of the images is a function of seed and step",
    "barebones": "a run keeps its logs and checkpoints",
}
"""Arguments of lightning.Trainer that contradict the framework, with what takes their place."""


def require_more_steps(config: DictConfig, done: int) -> None:
    """Raise UserError unless trainer.max_steps is above the number of steps `done` of the checkpoint."""
    max_steps = config.trainer.max_steps
    if isinstance(max_steps, int) and 0 < max_steps <= done:
        raise UserError(
            f"trainer.max_steps must be above {done:,}, the number of steps of the checkpoint, which are counted too, "
            f"got {max_steps:,}."
        )


def apply_trainer_settings(config: DictConfig, overrides: Sequence[str]) -> None:
    """Convert the settings of the trainer that stand for others, before any interpolation of the config is resolved.

    trainer.max_epochs becomes trainer.max_steps; trainer.limit_train_batches and trainer.overfit_batches become
    data.max_batches; trainer.max_steps=1e5 becomes 100000.
    overrides: overrides of the command line.  Raises UserError for settings that contradict the framework.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for name, reason in REFUSED.items():
        if name in config.trainer:
            raise UserError(f"trainer.{name} is not accepted, because {reason}, got {config.trainer[name]}.")
    if {"trainer.max_steps", "trainer.max_epochs"} <= given:
        raise UserError(
            f"trainer.max_steps and trainer.max_epochs cannot both be given, got {config.trainer.max_steps} and "
            f"{config.trainer.max_epochs}."
        )
    with open_dict(config):
        _limit_batches(config)
        if "trainer.max_epochs" in given and config.trainer.max_epochs not in (None, -1):
            epochs = _whole_number("trainer.max_epochs", config.trainer.max_epochs)
            config.trainer.max_steps = math.ceil(epochs * _num_images(config) / config.data.batch_size)
        config.trainer.max_epochs = -1
        if (max_steps := config.trainer.get("max_steps")) is not None:
            config.trainer.max_steps = max_steps if max_steps == -1 else _whole_number("trainer.max_steps", max_steps)
    if "data.max_steps" in given and config.data.max_steps != config.trainer.max_steps:
        raise UserError(
            f"data.max_steps must not be given if an experiment or another setting gives trainer.max_steps (here "
            f"{config.trainer.max_steps}), got data.max_steps={config.data.max_steps}; set trainer.max_steps instead."
        )


def _limit_batches(config: DictConfig) -> None:
    """Move trainer.limit_train_batches and trainer.overfit_batches to data.max_batches."""
    for name, unlimited in (("limit_train_batches", (None, 1.0)), ("overfit_batches", (0, 0.0))):
        if name not in config.trainer:
            continue
        limit = config.trainer.pop(name)
        if limit in unlimited and not (name == "limit_train_batches" and type(limit) is int):
            continue
        if isinstance(limit, float) and 0 < limit < 1:
            limit = max(1, int(limit * _num_images(config) / config.data.batch_size))
        config.data.max_batches = _whole_number(f"trainer.{name}", limit)


def _num_images(config: DictConfig) -> int:
    """Return the number of training images. This decodes the image set if it is not in the cache."""
    datamodule = instantiate_node(resolve(config).data.datamodule, "data")
    try:
        return len(datamodule.train_images)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _whole_number(name: str, value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 1 <= value < math.inf
        or value != int(value)
    ):
        raise UserError(f"{name} must be a whole number of at least 1, got {value}.")
    return int(value)


def require_launch(trainer: DictConfig) -> None:
    """Raise UserError unless devices and nodes of a trainer match the ranks that a launcher started."""
    node: Any = OmegaConf.to_container(trainer, resolve=True)
    try:
        launch.validate(node.get("devices", 1), node.get("num_nodes", 1), node.get("strategy"))
    except launch.LaunchError as error:
        raise UserError(str(error)) from error


def require_accelerator(name: str) -> None:
    """Raise UserError for a GPU as trainer.accelerator if torch finds none on this machine."""
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = "GPU" if name == "gpu" else f"{name.upper()} device"
    if not (found | {"gpu": any(found.values())}).get(name, True):
        raise UserError(
            f"trainer.accelerator must be auto or cpu on this machine, where torch finds no {kind}, got {name}."
        )

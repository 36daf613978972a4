"""Callbacks and loggers of a training run, and a check of all that they need later, before the first step."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs.load import instantiate_node, require_kind

if TYPE_CHECKING:
    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.training.base_module import TrainedModule

logger = logging.getLogger(__name__)

NUM_CHECKPOINTS = 4
"""Checkpoint files of a run: last.ckpt, previous.ckpt, best.ckpt, and a partial file while one of them is written."""


def require_default_callbacks(config: DictConfig, selected: str | None) -> None:
    """Raise UserError if a config has none of the default callbacks: a run without them could not be resumed.

    selected: choice of the group `callbacks`, for the error message; None for a list of choices.
    """
    if any(name in config.callbacks for name in OmegaConf.load(CONF / "callbacks" / "default.yaml")):
        return
    raise UserError(
        "callbacks must include the default callbacks, which save checkpoints, samples and metrics, got "
        f"{selected or ', '.join(map(str, config.callbacks)) or 'none'}; +callbacks={selected or 'CHOICE'} adds "
        "callbacks to them, and callbacks.NAME=null disables one of them."
    )


def build_callbacks(config: DictConfig) -> tuple[list[Any], dict[str, str]]:
    """Build the callbacks of a run.

    Returns the callbacks, and the reason why a callback is left out, by its name: its features are unavailable.
    """
    from lightning import Callback

    from diffusion_lab.features import FeaturesUnavailableError

    callbacks, left_out = [], {}
    if "_target_" in config.callbacks:
        raise UserError(
            f"callbacks must have a name for each callback (callbacks.NAME._target_), got _target_="
            f"{config.callbacks._target_} without a name."
        )
    for name, node in config.callbacks.items():
        if node is None:
            continue  # callbacks.NAME=null disables a callback
        try:
            callback = instantiate_node(node, f"callbacks.{name}")
        except FeaturesUnavailableError as error:
            logger.info("this run continues without callbacks.%s: %s", name, error)
            left_out[str(name)] = str(error)
            continue
        require_kind(callback, Callback, f"callbacks.{name}")
        features = getattr(getattr(callback, "metric", None), "features", None)
        if features is not None and config.data.channels not in features.channels:
            channels = " or ".join(map(str, features.channels))
            raise UserError(
                f"`features` must accept images with data.channels={config.data.channels}, got {features.name}, "
                f"which accepts {channels} channels; try features=inception."
            )
        callbacks.append(callback)
    return callbacks, left_out


def build_loggers(config: DictConfig) -> list[Any]:
    """Build the loggers of a run.  Raises UserError if the package of a logger is missing."""
    loggers = []
    for name, node in config.logger.items():
        if node is None:
            continue
        try:
            loggers.append(instantiate_node(node, f"logger.{name}"))
        except Exception as error:
            if (missing := next((cause for cause in _causes(error) if isinstance(cause, ImportError)), None)) is None:
                raise
            package = name if name in ("wandb", "tensorboard") else (missing.name or "").partition(".")[0] or "it"
            raise UserError(
                f"logger.{name} requires a package that is missing; run pip install {package}, or set logger=csv."
            ) from error
    return loggers


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def require_later_needs(
    callbacks: Sequence[Any], module: "TrainedModule", datamodule: "ImageDataModule", max_steps: int
) -> None:
    """Raise UserError if a callback would fail in a later step.

    This concerns metrics that need more images or other classes, folders that are not writable, and a disk that is too
    small for the checkpoints.
    """
    from diffusion_lab.callbacks.checkpoints import SaveLast
    from diffusion_lab.callbacks.measure_distance import MeasureDistance

    for callback in callbacks:
        if isinstance(callback, MeasureDistance):
            _require_measurable(callback, module, datamodule)
        if isinstance(folder := getattr(callback, "folder", None), Path):
            _require_writable(folder, type(callback).__name__)
        if isinstance(callback, SaveLast):
            _require_space(callback.folder, module, callback.keep_every_n_steps, max_steps)


def _require_measurable(callback: Any, module: Any, datamodule: "ImageDataModule") -> None:
    from diffusion_lab.evaluation.training_reference import TrainingReference
    from diffusion_lab.guidance import Guidance

    metric, num_images = callback.metric, len(datamodule.train_images)
    if metric.needs_reference and num_images < metric.min_images:
        raise UserError(
            f"`metrics`: {metric.title} needs at least {metric.min_images} training images, got {num_images}; try "
            "metrics=fid, or callbacks.measure_distance=null."
        )
    try:
        if metric.needs_held_out:
            TrainingReference.of(datamodule.store, datamodule.train_images).require(metric)
        metric.require_classes((callback.guidance or Guidance()).num_classes(module.labels))
    except ValueError as error:
        text = str(error)
        raise UserError(text if text.startswith("`metrics`") else f"`metrics`: {text}") from error


def _require_writable(folder: Path, name: str) -> None:
    """Raise UserError unless a folder, or the first of its parents that exists, is a folder that can be written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"the folder of {name} must be writable, got {folder}.")


def _require_space(folder: Path, module: "TrainedModule", keep_every_n_steps: int | None, max_steps: int) -> None:
    """Raise UserError if the checkpoints do not fit on the disk; log a note if only those that are kept do not fit."""
    size = checkpoint_bytes(module)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    replaced = sum(path.stat().st_size for path in folder.glob("*.ckpt") if not path.name.startswith("step_"))
    free = shutil.disk_usage(existing).free + replaced
    if free < NUM_CHECKPOINTS * size:
        raise UserError(
            f"the disk of {folder} must have {_gigabytes(NUM_CHECKPOINTS * size)} free for {NUM_CHECKPOINTS} "
            f"checkpoint files of {_gigabytes(size)}, got {_gigabytes(free)}; hydra.run.dir=FOLDER selects another."
        )
    num_kept = max(0, max_steps) // keep_every_n_steps if keep_every_n_steps else 0
    if free < (NUM_CHECKPOINTS + num_kept) * size:
        logger.warning(
            "%s checkpoints of %s (callbacks.save_last.keep_every_n_steps=%s) do not fit on the disk of %s, which has "
            "%s free.",
            f"{num_kept:,}",
            _gigabytes(size),
            keep_every_n_steps,
            folder,
            _gigabytes(free),
        )


def checkpoint_bytes(module: "TrainedModule") -> int:
    """Return the approximate size of a checkpoint: weights, averages, and the state of the optimizer."""
    trained = sum(parameter.nbytes for parameter in module.network.parameters() if parameter.requires_grad)
    stored = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    return int(stored + trained * num_optimizer_states(module))


def num_optimizer_states(module: "TrainedModule") -> int:
    """Return the number of values that the optimizer stores for each parameter."""
    defaults = module.optimizer(module.network).defaults
    if "betas" in defaults:
        return 2
    return 1 if defaults.get("momentum", 1) else 0


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.0f} MB"

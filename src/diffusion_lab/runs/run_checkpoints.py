"""The checkpoints in a run folder, and the reason why a run has none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffusion_lab.config.program import command_line
from diffusion_lab.config.saved_files import read_saved
from diffusion_lab.errors import UserError
from diffusion_lab.runs import metrics_log
from diffusion_lab.runs import status as run_status

SETTINGS = ("model", "data", "schedule", "optimizer")
"""Settings in the config.yaml of every run, of a diffusion model and of a classifier."""

OF_DIFFUSION = ("objective", "sampler")
"""Settings that only the config.yaml of a run of a diffusion model has."""


def require_settings(config: Mapping[Any, Any], folder: Path) -> None:
    """Raise UserError unless the config of a folder has the settings of a run."""
    required = (*SETTINGS, *(OF_DIFFUSION if any(name in config for name in OF_DIFFUSION) else ()))
    if missing := [name for name in required if name not in config]:
        raise UserError(
            f"{folder / 'config.yaml'} must be the config of a run, as training writes it, but it has no "
            f"{', '.join(missing)}."
        )


def find_checkpoints(folder: Path, name: str, shown: str) -> list[Path]:
    """Return the checkpoints of a run whose names match a glob pattern.  Raises UserError if there is none.

    shown: the run folder as a value on the command line, for the error message.
    """
    file = folder / "checkpoints" / name
    files = [file] if file.is_file() else sorted(file.parent.glob(name))
    if files:
        return files
    existing = ", ".join(sorted(path.name for path in file.parent.glob("*.ckpt")))
    if not existing:
        raise UserError(_why_none(folder, shown))
    reason = " (best.ckpt is saved by measurements during training)" if name == "best.ckpt" else ""
    raise UserError(f"`checkpoint` must be one of {existing} in {file.parent}, got {name}{reason}.")


def _why_none(folder: Path, shown: str) -> str:
    """Return the error message for a run without checkpoints: its state, its step and how it is trained further."""
    config = read_saved(folder / "config.yaml", dict)
    require_settings(config, folder)
    status = run_status.observe(folder)
    step = next((int(line["step"]) for line in reversed(metrics_log.read_log(folder)) if line.get("step", 0) >= 1), 0)
    total = OmegaConf.select(OmegaConf.create(config), "trainer.max_steps", throw_on_resolution_failure=False)
    progress = f" after step {step:,}{f' of {total:,}' if isinstance(total, int) and total > 0 else ''}"
    start = f"`{command_line('train' if 'objective' in config else 'train_classifier')} resume={shown}`"
    if status is not None and not status.is_over:
        return f"{folder} has no checkpoint yet: the run is {status.text}{progress if step else ''}."
    state = f": the run is {status.text}{progress if step else ''}" if status is not None else ""
    return f"{folder} has no checkpoint{state}; {start} trains it from its first step."

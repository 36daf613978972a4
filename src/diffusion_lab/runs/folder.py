"""What a run's folder holds from its first step on: all from which it is loaded and resumed."""

import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.overrides import OVERRIDES_FILE
from diffusion_lab.distributed import slurm_job
from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import resolve
from diffusion_lab.runs.resume import StartingPoint
from diffusion_lab.runs.training_setup import Run


def prepare(run: Run, start: StartingPoint) -> Path | None:
    """Writes down what a run is, before its first step; the checkpoint to begin from.

    Of several processes the first does it for all.
    """
    forked = start.checkpoint is not None and not start.continues
    checkpoint = run.folder / "checkpoints" / "last.ckpt" if forked else start.checkpoint
    if run.trainer.is_global_zero:
        _start_loggers(run.trainer.loggers, start.config, start.step if start.continues else 0)
        _save_config(start.config, run.folder)
        save_overrides(run.folder)
        if forked and start.checkpoint is not None and checkpoint is not None:
            _begin_fork(start.checkpoint, checkpoint)
    return checkpoint


def _start_loggers(loggers: list[Any], config: DictConfig, steps_done: int) -> None:
    for logger in loggers:
        if hasattr(logger, "continue_after"):
            logger.continue_after(steps_done)
        try:
            _ = logger.experiment
            if hasattr(logger, "describe"):
                logger.describe(OmegaConf.to_container(resolve(config)))
        except Exception as error:
            if not type(error).__module__.startswith("wandb"):
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"logger.wandb: {reason} logger.wandb.offline=true needs no account.") from error


def _save_config(config: DictConfig, folder: Path) -> None:
    partial = folder / "config.partial"
    OmegaConf.save(resolve(config), partial)
    partial.replace(folder / "config.yaml")  # a kill leaves the old one or the new


def _begin_fork(source: Path, target: Path) -> None:
    """Gives a fork a checkpoint of its own from the start, without what the other run measured."""
    from diffusion_lab import checkpoint_files

    checkpoint_files.write(checkpoint_files.read_run(source) | {"callbacks": {}}, target)


def save_overrides(folder: Path) -> None:
    """Keeps what a run was started with, so that it can be resumed: Hydra's own note is of the last command given."""
    if slurm_job.rank() == 0:
        words = [word for word in HydraConfig.get().overrides.task if not re.match(r"\+*(resume|fork)=", word)]
        OmegaConf.save(OmegaConf.create(words), folder / OVERRIDES_FILE)

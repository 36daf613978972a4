"""A run's folder while it trains: held by one run at a time, with all from which it is loaded and resumed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config_check import UserError
from diffusion_lab.run_resume import Start
from diffusion_lab.runs import Run, resolved

LOCK = ".lock"


@contextmanager
def held(run: Run, start: Start) -> Iterator[Path | None]:
    """Opens the folder, and keeps other runs out of it to the end; yields the checkpoint to begin from.

    Of several processes the first does it for all.  Raises UserError where another run is in the folder.
    """
    forked = start.checkpoint is not None and not start.continues
    checkpoint = run.folder / "checkpoints" / "last.ckpt" if forked else start.checkpoint
    if not run.trainer.is_global_zero:
        yield checkpoint
        return
    lock = FileLock(run.folder / LOCK)  # it belongs to the process: where that dies, the system lets go of it
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{run.folder} is being trained in by another process; wait for its end, or stop it.") from None
    try:
        _start_loggers(run.trainer.loggers, start.step if start.continues else 0)
        _save_config(start.config, run.folder)
        if start.continues:
            _keep_words(run.folder)
        if forked and start.checkpoint is not None and checkpoint is not None:
            _begin_fork(start.checkpoint, checkpoint)
        yield checkpoint
    finally:
        lock.release()


def _start_loggers(loggers: list[Any], steps_done: int) -> None:
    for logger in loggers:
        if hasattr(logger, "continue_after"):
            logger.continue_after(steps_done)
        try:
            _ = logger.experiment
        except Exception as error:
            if not type(error).__module__.startswith("wandb"):
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"logger.wandb: {reason} logger.wandb.offline=true needs no account.") from error


def _save_config(config: DictConfig, folder: Path) -> None:
    partial = folder / "config.partial"
    OmegaConf.save(resolved(config), partial)
    partial.replace(folder / "config.yaml")  # a kill leaves the old one or the new


def _keep_words(folder: Path) -> None:
    """Keeps what a resumed run was started with, so that it can be resumed again."""
    words = [word for word in HydraConfig.get().overrides.task if not re.match(r"\+*(resume|fork)=", word)]
    path = folder / ".hydra" / "overrides.yaml"
    path.parent.mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(words), path)


def _begin_fork(source: Path, target: Path) -> None:
    """Gives a fork a checkpoint of its own from the start, without what the other run measured."""
    from diffusion_lab import checkpoint_files

    checkpoint_files.write(checkpoint_files.read_run(source) | {"callbacks": {}}, target)

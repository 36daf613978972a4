"""Trains one diffusion model, or a sweep of them.

python src/train.py experiment=quickstart
python src/train.py schedule=cosine data=cifar10
python src/train.py -m schedule=linear,cosine model=unet_tiny,unet_small
python src/train.py resume=last
"""

import errno
import sys
import time
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lab import config_entry, run_folder, run_resume, run_tables, runs
from diffusion_lab.config_check import UserError


def train(config: DictConfig) -> float | None:
    """Compose -> build -> fit -> the number to minimise: the last distance, or loss where none was measured."""
    start = run_resume.start(config)
    if start.is_done:
        return run_resume.show_done(start)
    run = runs.build(start.config)
    run_resume.require_fit(start, run)

    from diffusion_lab import summary  # Lightning: by now it is loaded

    started = time.monotonic()
    with run_folder.held(run, start) as checkpoint:
        summary.announce(run.module, run.datamodule, run.trainer, run.folder, start.step)
        _fit(run, checkpoint)
    result = summary.summarize(run.trainer, minutes=(time.monotonic() - started) / 60)
    if run.trainer.is_global_zero:
        run_tables.write_summary(run.folder, result.as_dict())
        if result.numbers:
            run_tables.write_metrics(run.folder, result.record(run.folder))
        if not config_entry.swept():
            summary.show(result, run.folder)
    return result.objective


def _fit(run: runs.Run, checkpoint: Path | None) -> None:
    from diffusion_lab import step_guard, summary
    from diffusion_lab.callbacks.stop_on_signal import StoppedBySignal

    try:
        run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=checkpoint)
    except step_guard.DivergedError as error:
        raise UserError(str(error).rstrip(".")) from error
    except StoppedBySignal as stop:
        if run.trainer.is_global_zero:
            summary.show_how_to_resume(run.folder, stop.step)
        sys.exit(128 + stop.number)  # as the shell tells of a signal: never taken for success
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise UserError(
            f"{run.folder} cannot be written to any more: {error.strerror}; the last checkpoint there is whole, and "
            f"resume={run.folder} goes on from it once there is space."
        ) from error


if __name__ == "__main__":
    config_entry.entry("train", train, run_resume.prepare_command_line)

"""One training run from its config to its summary, whatever is trained."""

import errno
import signal
import time
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lab.config import compose
from diffusion_lab.distributed import signals
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.runs import folder as run_folder
from diffusion_lab.runs import results as run_results
from diffusion_lab.runs import resume as run_resume
from diffusion_lab.runs import training_setup


def train(config: DictConfig) -> float | None:
    """Compose -> build -> fit -> the number to minimise: the last distance, or loss where none was measured."""
    start = run_resume.starting_point(config)
    if start.is_done:
        return run_resume.print_done(start)
    run = training_setup.build(start.config)
    run_resume.require_matching_checkpoint(start, run)

    from diffusion_lab.runs import summary  # Lightning: by now it is loaded

    started, checkpoint = time.monotonic(), run_folder.prepare(run, start)
    summary.print_start(run.module, run.datamodule, run.trainer, run.folder, start.step)
    _fit(run, checkpoint)
    signals.install(signal.SIG_IGN)  # all that is left to do is to write it down
    result = summary.summarize(run.trainer, minutes=(time.monotonic() - started) / 60)
    if run.trainer.is_global_zero:
        run_results.write_summary(run.folder, result.as_dict())
        if result.numbers:
            run_results.write_metrics(run.folder, result.record(run.folder))
        if not compose.in_sweep():
            summary.print_summary(result, run.folder)
    return result.objective


def _fit(run: training_setup.Run, checkpoint: Path | None) -> None:
    from diffusion_lab.runs import summary
    from diffusion_lab.training import nonfinite_guard

    try:
        run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=checkpoint)
    except nonfinite_guard.DivergedError as error:
        raise UserError(str(error).rstrip(".")) from error
    except StoppedBySignal as stop:
        if run.trainer.is_global_zero and not stop.requests_requeue:
            summary.print_how_to_resume(run.folder, stop.step or 0, compose.command_name())
        raise
    except OSError as error:
        _end_others(run)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise UserError(
            f"{run.folder} cannot be written to any more: {error.strerror}; the last checkpoint there is whole, and "
            f"resume={run.folder} goes on from it once there is space."
        ) from error
    except Exception:
        _end_others(run)
        raise


def _end_others(run: training_setup.Run) -> None:
    """Ends the processes that Lightning started beside this one, which would wait for it for ever."""
    if hasattr(run.trainer.strategy.launcher, "procs"):
        run.trainer.strategy.launcher.kill(signal.SIGKILL)

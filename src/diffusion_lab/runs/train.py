"""One training run of a diffusion model or a classifier, from its config to its summary."""

import signal
import time
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffusion_lab.config import compose
from diffusion_lab.config.library_classes import drop_unused_settings
from diffusion_lab.config.overrides import given_overrides
from diffusion_lab.distributed import launch, signals
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import write_error
from diffusion_lab.runs import folder as run_folder
from diffusion_lab.runs import metrics_log
from diffusion_lab.runs import results as run_results
from diffusion_lab.runs import resume as run_resume
from diffusion_lab.runs.setup import training as training_setup
from diffusion_lab.runs.setup.callbacks import require_default_callbacks
from diffusion_lab.runs.setup.trainer_settings import apply_trainer_settings, require_more_steps
from diffusion_lab.runs.supervise import refused_without_changes


def train(config: DictConfig) -> float | None:
    """Execute a training run: config -> objects -> fit -> summary.

    Returns the value that a search minimizes: the last Fréchet distance, or the loss if no distance was measured.
    """
    overrides = given_overrides()
    with run_folder.saved_on_signal(config), refused_without_changes(Path(config.run_folder)):
        with signals.held():  # until the config is complete
            drop_unused_settings(config, overrides)
            apply_trainer_settings(config, overrides)
            start = run_resume.starting_point(config)
        if start.is_done:
            is_open_ended = run_resume.is_open_ended(config)
            return run_results.print_done(Path(config.run_folder), start.step, is_open_ended=is_open_ended)
        if not start.continues:
            training_setup.require_classes(start.config)
            require_default_callbacks(start.config, HydraConfig.get().runtime.choices.get("callbacks"))
        run = training_setup.build(start.config, is_new=start.checkpoint is None)
        run_resume.require_matching_checkpoint(start, run)
        if not start.continues:
            require_more_steps(start.config, start.step)
        started, start = time.monotonic(), run_folder.prepare(run, start)

    from diffusion_lab.callbacks import periodic_action  # these import Lightning, which is loaded by now
    from diffusion_lab.runs import summary
    from diffusion_lab.runs.cost import training_line

    summary.print_start(run.module, run.datamodule, run.trainer, run.folder, start.step)
    training_line.print_cost(run, start, overrides)
    _fit(run, start.checkpoint)
    if start.is_trained:  # Lightning calls no hooks of a run without steps; its last measurement did not end before
        periodic_action.run_after_training(run.trainer, run.module)
    signals.install(signal.SIG_IGN)  # training is complete: a signal must not prevent the results from being written
    seconds = time.monotonic() - started
    result = summary.summarize(run.trainer, run.folder, seconds=seconds, first_step=start.step, left_out=run.left_out)
    if run.trainer.is_global_zero:
        run_results.keep_earlier(run.folder, result.steps)
        if result.numbers:
            run_results.write_metrics(run.folder, result.record(run.folder))
        run_results.write_summary(run.folder, result.as_dict())  # last: a run with this file is not measured again
        metrics_log.save_curves(run.folder)
        if not compose.in_sweep():
            summary.print_summary(result, run.folder, is_open_ended=run_resume.is_open_ended(config))
    return result.objective


def _fit(run: training_setup.Run, checkpoint: Path | None) -> None:
    from diffusion_lab.callbacks import SaveLast
    from diffusion_lab.runs import summary
    from diffusion_lab.training import nonfinite_guard

    launch.protect_new_ranks(run.trainer.strategy)
    try:
        run.trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=checkpoint)
    except nonfinite_guard.DivergedError as error:
        raise UserError(str(error).rstrip(".")) from error
    except StoppedBySignal as stop:
        if stop.step is None:
            launch.kill_new_ranks()
        if run.trainer.is_global_zero and not stop.requests_requeue and not compose.in_sweep():
            saved = max((c.last_saved for c in run.trainer.callbacks if isinstance(c, SaveLast)), default=0)
            summary.print_how_to_resume(run.folder, saved, compose.command_name())
        raise
    except Exception as error:
        launch.kill_new_ranks()
        if (full := write_error(error)) is None:
            if checkpoint is not None and _is_in_restore(error):
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                raise UserError(f"the run cannot be resumed from the state in {checkpoint} ({reason}).") from error
            raise
        has_checkpoint = (run.folder / "checkpoints" / "last.ckpt").is_file()
        kept = "its last checkpoint is complete" if has_checkpoint else "it has no checkpoint yet"
        raise UserError(
            f"run folder {run.folder} is no longer writable ({full.strerror}); {kept}: make the folder writable or "
            f"free space, then continue with resume={run.folder}."
        ) from error
    if run.module.guard.skipped_all:
        raise UserError(
            "training failed: the loss or the gradient was not finite in every step, or in every step after the first; "
            "try a lower optimizer.lr or trainer.precision=32-true."
        )


def _is_in_restore(error: Exception) -> bool:
    """Return whether an error was raised while Lightning restored the state of a checkpoint."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [code.co_name for code in codes if code.co_filename.endswith("checkpoint_connector.py")]
    return any("restore" in name or "resume" in name for name in names)

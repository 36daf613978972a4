"""A callback that restores a checkpoint after a streak of skipped steps, whose loss or gradient was not finite."""

import contextlib
import csv
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.every import Every
from diffusion_lab.data.step_sampler import StepSampler
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.nonfinite_guard import DivergedError, GuardReport, Reason

logger = logging.getLogger(__name__)

FILE_NAME = "refused_steps.csv"
"""Name of the table of skipped steps in the run folder."""


class RestoreOnDivergence(Callback):
    """Callback that reports skipped steps, and restores a checkpoint if the module's NonFiniteGuard has tripped.

    The guard trips after guard.patience consecutive skipped steps, and the callback checks it every guard.patience
    steps. Weights, averages, optimizer state and time distribution are restored from the newest checkpoint that was not
    saved during a streak of skipped steps. The step number, and with it the learning rate, is not reset: the steps
    since the checkpoint are not repeated. If the guard trips after guard.max_restores restores, the callback restores
    the checkpoint once more and raises DivergedError.
    """

    def __init__(self, folder: str) -> None:
        """folder: run folder, which contains the folder `checkpoints` and the table `refused_steps.csv`."""
        self.folder = Path(folder)
        self._every: Every | None = None

    def on_train_start(self, trainer: Trainer, pl_module: TrainedModule) -> None:
        self._every = Every(pl_module.guard.patience)
        if trainer.is_global_zero:
            _drop_rows_from(trainer.global_step, self.folder / FILE_NAME)

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainedModule, *args: Any) -> None:
        assert self._every is not None
        if self._every.due(trainer.global_step):
            self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: TrainedModule) -> None:
        if self._every is not None and self._every.due_at_end(trainer.global_step):
            self._check(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: TrainedModule, exception: BaseException) -> None:
        if isinstance(exception, StoppedBySignal):  # a signal stops all ranks at the same step
            self._write_report(trainer, pl_module.guard.report())

    def _check(self, trainer: Trainer, module: TrainedModule) -> None:
        report = module.guard.report()
        self._write_report(trainer, report)
        if report.tripped:
            self._restore(trainer, module)

    def _write_report(self, trainer: Trainer, report: GuardReport) -> None:
        if not report.skipped or not trainer.is_global_zero:
            return
        path = self.folder / FILE_NAME
        not_requested = [(step, reason) for step, reason in report.skipped if reason is not Reason.SKIP_REQUESTED]
        if not_requested:
            steps = ", ".join(f"{step} ({reason})" for step, reason in not_requested)
            logger.warning("skipped optimizer steps: %s; their images are listed in %s.", steps, path)
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(["step", "reason", "images"])
            writer.writerows(_table_rows(trainer, report.skipped))

    def _restore(self, trainer: Trainer, module: TrainedModule) -> None:
        guard, now = module.guard, trainer.global_step
        cause = f"the loss or the gradient was not finite in {guard.patience} consecutive steps"
        path = newest_good_checkpoint(self._checkpoints(trainer))
        if path is None:
            raise DivergedError(
                f"training diverged: {cause}, and there is no checkpoint to restore; try a lower optimizer.lr, a lower "
                "trainer.gradient_clip_val or trainer.precision=32-true."
            )
        step, num_restores = restore(trainer, module, path), int(guard.num_restores)
        if num_restores == guard.max_restores:
            guard.streak.zero_()  # the next checkpoint contains the restored state, which precedes the streak
            raise DivergedError(
                f"training diverged: {cause} after guard.max_restores={num_restores} restores; the newest "
                f"checkpoint that precedes the skipped steps is {path} (step {step}); try a lower optimizer.lr, a "
                "lower trainer.gradient_clip_val or trainer.precision=32-true."
            )
        guard.reset_streak()
        if trainer.is_global_zero:
            logger.warning(
                f"{cause}: restored {path.name} and skipped steps {step} to {now - 1}, which followed the checkpoint "
                f"(restore {num_restores + 1} of {guard.max_restores})."
            )

    def _checkpoints(self, trainer: Trainer) -> Iterator[Path]:
        names = (checkpoint_files.LAST, checkpoint_files.PREVIOUS, checkpoint_files.BEST)
        yield from (path for name in names if (path := self.folder / "checkpoints" / name).is_file())
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).is_file():
            yield Path(trainer.ckpt_path)  # the run was resumed from a checkpoint in another folder


def newest_good_checkpoint(paths: Iterator[Path]) -> Path | None:
    """Return the checkpoint with the largest step that was not saved during a streak of skipped steps, or None."""
    steps = {}
    for path in paths:
        with contextlib.suppress(checkpoint_files.DamagedCheckpointError):
            state = checkpoint_files.read_run(path, mmap=True)
            if not int(state["state_dict"].get("guard.streak", 0)):
                steps[path] = state["global_step"]
    return max(steps, key=lambda path: steps[path], default=None)


def restore(trainer: Trainer, module: TrainedModule, path: Path) -> int:
    """Load the trained state from a checkpoint and return the step of the checkpoint. All ranks read the file.

    The counters (the step, the learning-rate schedule and the buffers of the guard) keep their current values.
    """
    state = checkpoint_files.read_run(path)
    counters = {f"guard.{name}": value for name, value in module.guard.state_dict().items()}
    module.load_state_dict(state["state_dict"] | counters)
    for optimizer, saved in zip(trainer.optimizers, state["optimizer_states"], strict=True):
        optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["global_step"])


def _table_rows(trainer: Trainer, skipped: tuple[tuple[int, Reason], ...]) -> Iterator[list[object]]:
    """Yield a row for each skipped step: step, reason, and the indices of its images in the training set."""
    data = trainer.datamodule
    for step, reason in skipped:
        sampler = StepSampler(len(data.train_images), batch_size=data.batch_size, seed=data.seed, first_step=step)
        yield [step, reason, " ".join(map(str, next(iter(sampler)).index))]


def _drop_rows_from(step: int, path: Path) -> None:
    """Remove the rows of `step` and of later steps from the table, because the resumed run repeats these steps."""
    if path.is_file():
        head, *rows = path.read_text().splitlines(keepends=True)
        remaining = [row for row in rows if row.partition(",")[0].isdigit() and int(row.partition(",")[0]) < step]
        path.write_text("".join([head, *remaining]))

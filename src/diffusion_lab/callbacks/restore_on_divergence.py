"""Going back to a good checkpoint when steps are refused in a row."""

import contextlib
import csv
import sys
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

TABLE = "refused_steps.csv"


class RestoreOnDivergence(Callback):
    """Looks at the guard every `patience` steps: reports refused ones, and restores a checkpoint once it has tripped.

    Restored are weights, average, optimizer and times, from the newest checkpoint that no refused step went before. The
    number of the step, and with it the learning rate, goes on: the steps since the checkpoint are skipped. After
    max_restores of the guard the run ends with DivergedError, and with the state of that checkpoint.
    """

    def __init__(self, folder: str) -> None:
        """folder: of the run; checkpoints are in its `checkpoints`, refused steps go to its `refused_steps.csv`."""
        self.folder = Path(folder)
        self._every: Every | None = None

    def on_train_start(self, trainer: Trainer, pl_module: TrainedModule) -> None:
        self._every = Every(pl_module.guard.patience)
        if trainer.is_global_zero:
            _drop_rows_from(trainer.global_step, self.folder / TABLE)

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainedModule, *args: Any) -> None:
        assert self._every is not None
        if self._every.due(trainer.global_step):
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: TrainedModule) -> None:
        if self._every is not None and self._every.left_over(trainer.global_step):
            self._look(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: TrainedModule, exception: BaseException) -> None:
        if isinstance(exception, StoppedBySignal):  # all processes are here
            look = pl_module.guard.look()
            if look.refused and trainer.is_global_zero:
                self._report(trainer, look)

    def _look(self, trainer: Trainer, module: TrainedModule) -> None:
        look = module.guard.look()
        if look.refused and trainer.is_global_zero:
            self._report(trainer, look)
        if look.tripped:
            self._go_back(trainer, module)

    def _report(self, trainer: Trainer, look: GuardReport) -> None:
        path = self.folder / TABLE
        if unasked := [f"{step} ({reason})" for step, reason in look.refused if reason is not Reason.TOLD_TO_SKIP]:
            _warn(f"not applied: step {', '.join(unasked)}; the images are in {path}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(["step", "reason", "images"])
            writer.writerows(_rows(trainer, look.refused))

    def _go_back(self, trainer: Trainer, module: TrainedModule) -> None:
        guard, now = module.guard, trainer.global_step
        in_a_row = f"{guard.patience} steps in a row had a loss or a gradient that is not finite"
        path = newest_good_checkpoint(self._checkpoints(trainer))
        if path is None:
            raise DivergedError(
                f"training diverged: {in_a_row} before there was a checkpoint to go back to; try a lower optimizer.lr, "
                "a lower trainer.gradient_clip_val or trainer.precision=32-true."
            )
        step, num_restores = restore(trainer, module, path), int(guard.num_restores)
        if num_restores == guard.max_restores:
            guard.streak.zero_()  # the state is good: whoever saves it saves no row of refused steps
            raise DivergedError(
                f"training diverged: {in_a_row} after guard.max_restores={num_restores} returns to a checkpoint; the "
                f"last good one is {path}, of step {step}; try a lower optimizer.lr, a lower trainer.gradient_clip_val "
                "or trainer.precision=32-true."
            )
        guard.reset_streak()
        if trainer.is_global_zero:
            _warn(
                f"{in_a_row}: restored {path.name}, and skipped what followed it, steps {step} to {now - 1} (restore "
                f"{num_restores + 1} of {guard.max_restores})"
            )

    def _checkpoints(self, trainer: Trainer) -> Iterator[Path]:
        names = (checkpoint_files.LAST, checkpoint_files.PREVIOUS, checkpoint_files.BEST)
        yield from (path for name in names if (path := self.folder / "checkpoints" / name).is_file())
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).is_file():
            yield Path(trainer.ckpt_path)  # a run that went on from another folder's checkpoint


def newest_good_checkpoint(paths: Iterator[Path]) -> Path | None:
    """The checkpoint of the largest step that was not written in a row of refused steps; None if there is none."""
    steps = {}
    for path in paths:
        with contextlib.suppress(checkpoint_files.DamagedCheckpointError):
            state = checkpoint_files.read_run(path, mmap=True)
            if not int(state["state_dict"].get("guard.streak", 0)):
                steps[path] = state["global_step"]
    return max(steps, key=lambda path: steps[path], default=None)


def restore(trainer: Trainer, module: TrainedModule, path: Path) -> int:
    """Loads all that learns; what counts, steps and refusals and the learning rate, goes on.  Returns the step of path.

    Every process reads the file.
    """
    state = checkpoint_files.read_run(path)
    counts = {f"guard.{name}": value for name, value in module.guard.state_dict().items()}
    module.load_state_dict(state["state_dict"] | counts)
    for optimizer, saved in zip(trainer.optimizers, state["optimizer_states"], strict=True):
        optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["global_step"])


def _rows(trainer: Trainer, refused: tuple[tuple[int, Reason], ...]) -> Iterator[list[object]]:
    data = trainer.datamodule
    for step, reason in refused:
        whole = StepSampler(len(data.train_images), batch_size=data.batch_size, seed=data.seed, first_step=step)
        yield [step, reason, " ".join(map(str, next(iter(whole)).index))]


def _drop_rows_from(step: int, path: Path) -> None:
    """Leaves out the steps that a resumed run does again."""
    if path.is_file():
        head, *rows = path.read_text().splitlines(keepends=True)
        kept = [row for row in rows if row.partition(",")[0].isdigit() and int(row.partition(",")[0]) < step]
        path.write_text("".join([head, *kept]))


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}.", file=sys.stderr, flush=True)

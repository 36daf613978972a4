"""A callback that displays the training progress in one line."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.reporting.console import Console, DescriptionColumn
from diffusion_lab.reporting.console import Progress as Bar
from diffusion_lab.reporting.progress import SECONDS_BETWEEN_LINES, Advance, progress_lines
from diffusion_lab.reporting.text_tables import format_duration

logger = logging.getLogger(__name__)

NUM_TIMED_STEPS = 2
"""Number of steps, after the first one, whose duration is measured and announced. The first step initializes kernels,
and with trainer.compile it compiles the network."""


class Progress(ProgressBar):
    """Display of step, loss, speed and remaining time: a bar in a terminal, or a line every ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Bar | None = None
        self._task: Any = None
        self._started = self._last_line = 0.0
        self._first_step = 0
        self._first_step_ended: float | None = None
        self._enabled = True
        self._announced = False

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._first_step, self._last_line = time.monotonic(), trainer.global_step, 0.0
        self._first_step_ended = None
        console = Console()
        if self._enabled and console.is_terminal:
            columns = (DescriptionColumn(), BarColumn(), MofNCompleteColumn(), "{task.fields[text]}")
            self._bar = Bar(*columns, TimeRemainingColumn(), TextColumn("left"), console=console, refresh_per_second=4)
            self._task = self._bar.add_task("training", total=trainer.max_steps, text="", completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self._enabled and not self._announced:
            self._time_first_steps(trainer)
        now = time.monotonic()
        interval = 0.5 if self._bar is not None else SECONDS_BETWEEN_LINES
        if not self._enabled or (now - self._last_line < interval and trainer.global_step < trainer.max_steps):
            return  # not after every step, because reading the loss waits for the device
        self._last_line = now
        text = self._text(trainer)
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, text=text)
        else:
            left = format_duration(self._seconds_left(trainer, now))
            print(f"step {trainer.global_step}/{trainer.max_steps}  {text}  {left} left", file=sys.stderr, flush=True)

    def _seconds_left(self, trainer: Trainer, now: float) -> float:
        num_steps = max(trainer.global_step - self._first_step, 1)
        left: float = (now - self._started) / num_steps * (trainer.max_steps - trainer.global_step)
        return left

    def _time_first_steps(self, trainer: Trainer) -> None:
        """Measure the second and the third step, and announce the duration of the run after the third step."""
        num_steps = trainer.global_step - self._first_step
        is_first, is_last = num_steps >= 1 and self._first_step_ended is None, num_steps > NUM_TIMED_STEPS
        if not is_first and not is_last:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # a GPU works while the host starts the next steps; only these two steps wait
        if self._first_step_ended is None:
            self._first_step_ended = time.monotonic()
            return
        self._announced = True
        seconds = (time.monotonic() - self._first_step_ended) / (num_steps - 1)
        self._announce_duration(trainer, seconds * (trainer.max_steps - trainer.global_step))

    def _announce_duration(self, trainer: Trainer, seconds_left: float) -> None:
        """Log how long the rest of a run of hours takes and how to shorten it."""
        hours = seconds_left / 3600
        if hours >= 1:
            logger.info(
                "%s hours left for %s steps; trainer.max_steps=... makes the run shorter.",
                f"{hours:,.1f}",
                f"{trainer.max_steps - trainer.global_step:,}",
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    @contextmanager
    def task(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        """Show the progress of a long task during training, such as sampling.

        Yields a function that must be called with the number of units finished since its previous call.
        total: number of units of the task.  unit: what is counted, such as "images".
        """
        if self._bar is not None:
            task = self._bar.add_task(description, total=total, text="")
            yield lambda units: self._bar.advance(task, units) if self._bar is not None else None
            self._bar.remove_task(task)
            return
        with progress_lines(description, total, unit) if self._enabled else nullcontext(lambda units: None) as advance:
            yield advance

    def _text(self, trainer: Trainer) -> str:
        loss = trainer.callback_metrics.get("loss")
        speed = trainer.callback_metrics.get("images_per_second")
        parts = [f"epoch {_num_epochs(trainer):.1f}"] if isinstance(trainer.datamodule, ImageDataModule) else []
        parts += [] if loss is None else [f"loss {float(loss):.4f}"]
        waiting = trainer.callback_metrics.get("data_wait")
        parts += [] if speed is None else [f"{float(speed):,.0f} images/s"]
        return "  ".join(parts if waiting is None else [*parts, f"{100 * float(waiting):.1f}% waiting for data"])

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _num_epochs(trainer: Trainer) -> float:
    """Return how often the run has seen each image, on average."""
    data = trainer.datamodule
    return float(trainer.global_step * data.batch_size / len(data.train_images))


@contextmanager
def long_task(trainer: Trainer, description: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Show the progress of a task in the trainer's progress display, if it has one; see `Progress.task`."""
    if isinstance(display := trainer.progress_bar_callback, Progress):
        with display.task(description, total, unit) as advance:
            yield advance
    else:
        yield lambda units: None

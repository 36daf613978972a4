"""Progress display for long tasks: a bar if stderr is a terminal, and a line every few seconds if it is not."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.reporting.console import Console, DescriptionColumn
from diffusion_lab.reporting.console import Progress as Bar
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.reporting.text_tables import format_duration

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]
"""A function that adds a number of completed items."""

Display = Callable[[str, int], AbstractContextManager[Advance]]
"""(description, number of images) -> context manager that shows the progress."""


class _SpeedColumn(ProgressColumn):
    """Column of a progress bar with the mean number of completed items per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / max(task.elapsed or 0.0, 1e-9):,.1f} {self.unit}/s")


@contextmanager
def progress_bar(description: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Show how many of `total` items are completed, the speed and the remaining time.

    Yields a function that adds a number of completed items. Only rank 0 shows a display, for its own items.
    """
    console = Console(stderr=True)
    if Ranks.current().rank or not total:
        yield lambda items: None
    elif console.is_terminal:
        columns = (DescriptionColumn(), BarColumn(), MofNCompleteColumn(), _SpeedColumn(unit), TimeRemainingColumn())
        with Bar(*columns, TextColumn("left"), console=console, refresh_per_second=4) as bar:
            task = bar.add_task(description, total=total)
            yield lambda items: bar.advance(task, items)
    else:
        with progress_lines(description, total, unit) as advance:
            yield advance


@contextmanager
def progress_lines(description: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Show progress like `progress_bar`, but always as lines on stderr."""
    yield _Lines(description, total, unit).advance


class _Lines:
    """Progress display that prints lines to stderr."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit, self.done = terminal_text(description), total, unit, 0
        self.started = self.last = time.monotonic()

    def advance(self, items: int) -> None:
        self.done += items
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        speed = self.done / (now - self.started)
        left = format_duration((self.total - self.done) / speed) if speed else "?"
        print(
            f"{self.description}: {self.done:,}/{self.total:,}  {speed:,.1f} {self.unit}/s  {left} left",
            file=sys.stderr,
            flush=True,
        )

"""How far something long is: a bar on a terminal, a line now and then in a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from diffusion_lab.distributed.collectives import Ranks

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]
"""Told how many more are done."""

Display = Callable[[str, int], AbstractContextManager[Advance]]
"""(what is done, how many images) -> shows how far it is, for as long as it is entered."""


class _Speed(ProgressColumn):
    """Images, or whatever is counted, a second so far."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / max(task.elapsed or 0.0, 1e-9):,.1f} {self.unit}/s")


@contextmanager
def progress_bar(description: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """Shows how many of `total` are done, how many a second, and the time left; yields a function to tell of more.

    The first of several processes alone shows its own share.
    """
    console = Console(stderr=True)
    if Ranks.current().rank or not total:
        yield lambda images: None
    elif console.is_terminal:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), _Speed(unit), TimeRemainingColumn())
        with Bar(*columns, TextColumn("left"), console=console, refresh_per_second=4) as bar:
            shown = bar.add_task(description, total=total)
            yield lambda images: bar.advance(shown, images)
    else:
        with progress_lines(description, total, unit) as advance:
            yield advance


@contextmanager
def progress_lines(description: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """As `show`, in a file."""
    yield _Lines(description, total, unit).advance


class _Lines:
    """What a bar shows, as lines."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, 0
        self.started = self.last = time.monotonic()

    def advance(self, images: int) -> None:
        self.done += images
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


def format_duration(seconds: float) -> str:
    """A time as hours, minutes and seconds: 0:01:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"

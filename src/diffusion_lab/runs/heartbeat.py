"""Signs of life of a run: its process touches a file, so that other machines notice that the process is gone."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS, SILENCE = 15.0, 90.0
"""Seconds between two signs of life, and after the last one until a run counts as silent.

Network file systems show a new time of a file up to a minute late.
"""

WRITTEN = (".lock", "metrics.csv", "checkpoints/last.ckpt")
"""Files whose times are signs of life: the first one is touched, and runs of earlier versions write the others."""


@contextmanager
def heartbeat(folder: Path) -> Iterator[None]:
    """Touch the lock file of a run folder at regular intervals, until the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(folder / WRITTEN[0], ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def silent_since(folder: Path, began: float) -> float | None:
    """Return the time of the last sign of life if it is too long ago, in seconds since 1970; None if it is recent.

    began: time at which the process of the run is known to have lived.
    """
    paths = [folder / name for name in WRITTEN]
    last = max([began, *(path.stat().st_mtime for path in paths if path.is_file())])
    return last if time.time() - last > SILENCE else None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(SECONDS):
        try:
            os.utime(path)
        except OSError:  # the folder was moved or deleted
            return

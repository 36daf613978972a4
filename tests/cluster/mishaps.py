"""Callbacks that make a run fail."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer


class Mishap(Callback):
    """After three steps of a run's first start: raises, kills the process, or slows down so that it can be canceled.

    kind: raise, kill, or any other name for slow steps.  folder: of a file that records the first start.
    """

    def __init__(self, kind: str, folder: str) -> None:
        self.kind, self.marker = kind, Path(folder) / f"{kind}.happened"
        self.slow = False

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3 and not self.marker.exists():
            self.marker.touch()
            if self.kind == "raise":
                raise RuntimeError("the third step failed")
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self.slow = True
        if self.slow:
            time.sleep(1)


class FailOnRank1(Callback):
    """Raises an exception on rank 1 only."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3 and trainer.global_rank == 1:
            raise RuntimeError("only rank 1 failed")


class SlowRank0(Callback):
    """Slows down rank 0, so that the ranks are at different places when a signal arrives."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        time.sleep(0.15 if trainer.global_rank == 0 else 0.0)


class SlowFirstStarts(Callback):
    """Slows down rank 0 in the first starts of a run, so that each of them reaches its time limit.

    folder: run folder.  num_starts: number of slow starts.
    """

    def __init__(self, folder: str, num_starts: int) -> None:
        self.folder, self.num_starts = Path(folder), num_starts
        self.seconds = 0.0

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        starts = json.loads((self.folder / "status.json").read_text())["starts"]
        self.seconds = 4.0 if len(starts) <= self.num_starts else 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        time.sleep(self.seconds if trainer.global_rank == 0 else 0.0)

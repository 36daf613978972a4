"""What goes wrong in a run, once."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer


class Mishap(Callback):
    """After the third step of a run's first start: an exception, a kill, or steps so slow that it can be ended."""

    def __init__(self, kind: str, folder: str) -> None:
        self.kind, self.marker = kind, Path(folder) / f"{kind}.happened"
        self.slow = False

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3 and not self.marker.exists():
            self.marker.touch()
            if self.kind == "raise":
                raise RuntimeError("the third step went wrong")
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self.slow = True
        if self.slow:
            time.sleep(1)


class OneRank(Callback):
    """An exception in the second of two processes alone."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3 and trainer.global_rank == 1:
            raise RuntimeError("the second process went wrong")


class Slower(Callback):
    """The first process needs longer for each step than the others: they are out of step when a signal comes."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        time.sleep(0.15 if trainer.global_rank == 0 else 0.0)

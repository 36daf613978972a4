"""TensorBoard logger whose event files a resumed run continues without repeated steps."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from diffusion_lab.files.atomic import atomic_file

NAME = "tensorboard"


class TensorBoardEvents(TensorBoardLogger):
    """TensorBoard event files in the folder `tensorboard` of a run folder.

    A resumed run removes the events after the step that it resumes from, since it logs these steps again.
    """

    def __init__(self, folder: str) -> None:
        """folder: run folder."""
        super().__init__(save_dir=folder, name="", version=NAME)
        self._steps_done: int | None = None

    def continue_after(self, step: int, log_every_n_steps: int = 1) -> None:
        """Keep only the events up to `step`, from which a run resumes. Call before the first metric is logged.

        log_every_n_steps: not used.
        """
        self._steps_done = step

    @rank_zero_only
    def sync(self) -> None:
        """Write all events that have been logged to the event file."""
        if self._experiment is not None:
            self._experiment.flush()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None and self._steps_done is not None:
            for path in Path(self.log_dir).glob("events.out.tfevents.*"):
                _remove_events(path, self._steps_done)
            self._steps_done = None
        return TensorBoardLogger.experiment.fget(self)


def _remove_events(path: Path, last_step: int) -> None:
    """Remove the events after a step, and an incomplete last event, from a file; remove a file without other events."""
    from tensorboard.compat.proto.event_pb2 import Event

    kept, num_kept = [], 0
    for record, content in _records(path.read_bytes()):
        event = Event.FromString(content)
        if event.step <= last_step and (last_step or not event.HasField("summary")):
            kept.append(record)
            num_kept += event.HasField("summary")
    if not num_kept:
        path.unlink()
        return
    with atomic_file(path) as partial:
        partial.write_bytes(b"".join(kept))


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each complete record of an event file, and its content: size (8 bytes), CRC (4), content, CRC (4)."""
    position = 0
    while position + 12 <= len(data):
        (size,) = struct.unpack("<Q", data[position : position + 8])
        end = position + 12 + size + 4
        if end > len(data):
            return
        yield data[position:end], data[position + 12 : end - 4]
        position = end

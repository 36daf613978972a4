"""Decoding of a complete split into a raw pixel file, with worker processes if one process would take too long."""

import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from diffusion_lab.data.decoding import DamagedImageError, Preparation, WrongSizeError
from diffusion_lab.data.image_files import UndecodedImages, file_name, read_images
from diffusion_lab.distributed import signals
from diffusion_lab.reporting.console import Console, DescriptionColumn, Progress
from diffusion_lab.reporting.text import terminal_text

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""Time in seconds between progress lines if stderr is not a terminal."""
MIN_PARALLEL_SECONDS = 10.0
"""Remaining decoding time, in seconds, above which worker processes are started; starting them takes two seconds."""
CHUNK_BYTES = 2**22
"""Bytes of decoded pixels that a process holds in memory at a time."""


@dataclass(frozen=True)
class Damage:
    """An image that cannot be decoded and is left out.  number: index of the image in the split."""

    number: int
    reason: str


@dataclass(frozen=True)
class Decoder:
    """Decodes ranges of a split into a raw pixel file.  The ranges can be decoded in any order by any process.

    images: undecoded images of the split.  pixels: path of the raw pixel file.
    """

    images: UndecodedImages
    preparation: Preparation
    pixels: Path

    def __call__(self, numbers: range) -> list[Damage]:
        """Decode the images with the indices `numbers` and write their pixels at their positions in the file.

        Returns the damaged images, which are black in the file.  Raises WrongSizeError, see `Preparation`.
        """
        block = np.zeros((len(numbers), *self.preparation.shape), dtype=np.uint8)
        damaged = []
        with _filter_pillow_warnings():
            for row, content in enumerate(read_images(self.images, numbers.start, numbers.stop)):
                try:
                    if isinstance(content, DamagedImageError):
                        raise content
                    block[row] = self.preparation.decode(content)
                except DamagedImageError as error:
                    damaged.append(Damage(numbers[row], str(error)))
                except WrongSizeError as error:
                    name = file_name(self.images, numbers[row])
                    named = f" ({terminal_text(name)})" if name else ""
                    raise WrongSizeError(f"image {numbers[row]}{named} has {error}") from None
        # Not memory-mapped: on a full disk, a write raises OSError, but a memory map ends the process with a bus error.
        with self.pixels.open("r+b") as file:
            file.seek(numbers.start * block[0].nbytes)
            file.write(block.data)
        return damaged


def decode_split(decoder: Decoder, description: str, check_damage: Callable[[list[Damage]], None]) -> list[Damage]:
    """Decode a complete split and return its damaged images.

    description: text of the progress report.
    check_damage: function that is called after each decoded range with all damaged images found so far; it may raise an
        error to stop the decoding.
    Decoding starts in this process. After a second, worker processes (one per CPU) take over if enough work remains.
    The decoded pixels do not depend on the number of processes.
    """
    size = len(decoder.images)
    decoder.pixels.touch()
    step = max(1, CHUNK_BYTES // int(np.prod(decoder.preparation.shape)))
    ranges = [range(start, min(start + step, size)) for start in range(0, size, step)]
    damaged: list[Damage] = []
    with _progress(description, size) as advance:
        for numbers, damage in zip(ranges, _decode_ranges(decoder, ranges), strict=True):
            damaged += damage
            check_damage(damaged)
            advance(len(numbers))
    return damaged


def _decode_ranges(decoder: Decoder, ranges: list[range]) -> Iterator[list[Damage]]:
    """Decode the ranges and yield, for each range in order, a list of its damaged images."""
    start_time, num_workers = time.monotonic(), _num_cpus()
    for num_done, numbers in enumerate(ranges, start=1):
        yield decoder(numbers)
        if num_workers > 1 and _workers_pay_off(time.monotonic() - start_time, num_done / len(ranges)):
            yield from _decode_in_parallel(decoder, ranges[num_done:], num_workers)
            return


def _workers_pay_off(seconds: float, fraction: float) -> bool:
    """Return whether worker processes would save time.

    seconds: time since the start of the decoding.  fraction: fraction of the images that was decoded in this time.
    """
    return seconds > 1 and seconds * (1 - fraction) / fraction > MIN_PARALLEL_SECONDS


def _num_cpus() -> int:
    """Return the number of CPUs that this process may use, or of all CPUs on systems that do not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode_in_parallel(decoder: Decoder, ranges: list[range], num_workers: int) -> Iterator[list[Damage]]:
    num_done = 0
    try:
        pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _init_worker, (decoder,))
    except OSError as error:  # no semaphores: /dev/shm is full or read-only
        logger.info("decoding continues in one process (%s).", error.strerror, extra={"all_ranks": True})
        yield from map(decoder, ranges)
        return
    try:
        with signals.blocked():  # starts the workers
            damaged = pool.map(_decode_in_worker, ranges)
        for damage in damaged:
            yield damage
            num_done += 1
    except BrokenProcessPool:  # for example a script without the guard `if __name__ == "__main__"`
        message = "the worker processes ended unexpectedly; decoding continues in one process."
        logger.info(message, extra={"all_ranks": True})  # any rank may be the one that builds the set
        yield from map(decoder, ranges[num_done:])
    finally:
        pool.shutdown(cancel_futures=True)


_worker_decoder: list[Decoder] = []


def _init_worker(decoder: Decoder) -> None:
    _worker_decoder.append(decoder)
    signals.end_with_parent()


def _decode_in_worker(numbers: range) -> list[Damage]:
    return _worker_decoder[0](numbers)


def remove_damaged(pixels: Path, shape: tuple[int, ...], size: int, damaged: list[Damage]) -> np.ndarray:
    """Remove the damaged images from a raw pixel file of `size` images, in place.

    shape: shape of one image, (C, H, W).  Returns the indices of the remaining images in the split, ascending.
    """
    kept = np.setdiff1d(np.arange(size), [damage.number for damage in damaged])
    if damaged:
        images = np.memmap(pixels, np.uint8, "r+", shape=(size, *shape))
        step = max(1, CHUNK_BYTES // int(np.prod(shape)))
        for start in range(damaged[0].number, len(kept), step):  # ascending: no image is overwritten before it is moved
            moved = images[kept[start : start + step]]
            images[start : start + len(moved)] = moved
        images.flush()
        del images
        os.truncate(pixels, len(kept) * int(np.prod(shape)))
    return kept


@contextmanager
def _filter_pillow_warnings() -> Iterator[None]:
    """Raise Pillow's warning about a truncated file as an error; ignore its many warnings about damaged metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Truncated File Read")
        yield


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that receives the number of newly decoded images and reports the progress on stderr.

    On a terminal, the report is a progress bar. If stderr is not a terminal, a line is printed every ten seconds.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (DescriptionColumn(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("left"), console=console, transient=True, refresh_per_second=4) as bar:
            yield partial(bar.advance, bar.add_task(description, total=total))
        return
    num_done, last_time = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal num_done, last_time
        num_done += count
        if time.monotonic() - last_time >= SECONDS_BETWEEN_LINES:
            last_time = time.monotonic()
            print(f"{terminal_text(description)}: {num_done:,} of {total:,}", file=sys.stderr, flush=True)

    yield advance

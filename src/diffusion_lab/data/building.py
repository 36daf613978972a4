"""Decodes the images of an opened set into a file of raw pixels, on all processors where that pays."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffusion_lab.data.decoding import DamagedImageError, Preparation
from diffusion_lab.data.image_source import contents

if TYPE_CHECKING:
    from datasets import Dataset

SECONDS_BETWEEN_LINES = 10.0
SECONDS_THAT_PAY = 10.0
"""Of decoding still to do, above which starting processes (two seconds) is worth it."""
CHUNK_BYTES = 2**22
"""Of decoded pixels that a process holds at a time."""


@dataclass(frozen=True)
class Damage:
    """One image that is left out.  number: its row in the split."""

    number: int
    reason: str


@dataclass(frozen=True)
class Decoder:
    """Decodes ranges of a split, each into its place in a file of raw pixels; knows no order and no neighbours."""

    dataset: "Dataset"
    preparation: Preparation
    pixels: Path

    def __call__(self, numbers: range) -> list[Damage]:
        """Writes the images of these numbers; a damaged one is black in the file, and told."""
        block = np.zeros((len(numbers), *self.preparation.shape), dtype=np.uint8)
        damaged = []
        with _quiet_decoding():
            for row, content in enumerate(contents(self.dataset, numbers.start, numbers.stop)):
                try:
                    if isinstance(content, DamagedImageError):
                        raise content
                    block[row] = self.preparation.decode(content)
                except DamagedImageError as error:
                    damaged.append(Damage(numbers[row], str(error)))
        # Written, not mapped: a full disk is an error here, and would be the end of the process in a map.
        with self.pixels.open("r+b") as file:
            file.seek(numbers.start * block[0].nbytes)
            file.write(block.data)
        return damaged


def decode(decoder: Decoder, description: str, give_up: Callable[[list[Damage]], None]) -> list[Damage]:
    """Decodes a whole split.  give_up: sees the damage so far after each range, and may raise.

    The first second is decoded here; what is left goes to as many processes as there are processors if it would take
    long.  The pixels do not depend on who decoded them.
    """
    size = len(decoder.dataset)
    decoder.pixels.touch()
    step = max(1, CHUNK_BYTES // int(np.prod(decoder.preparation.shape)))
    ranges = [range(start, min(start + step, size)) for start in range(0, size, step)]
    damaged: list[Damage] = []
    with _progress(description, size) as advance:
        for done, found in zip(ranges, _decoded(decoder, ranges), strict=True):
            damaged += found
            give_up(damaged)
            advance(len(done))
    return damaged


def _decoded(decoder: Decoder, ranges: list[range]) -> Iterator[list[Damage]]:
    """What each range came to, in order."""
    started, processes = time.monotonic(), _num_processors()
    for done, numbers in enumerate(ranges, start=1):
        yield decoder(numbers)
        if processes > 1 and _pays(time.monotonic() - started, done / len(ranges)):
            yield from _decoded_in_parallel(decoder, ranges[done:], processes)
            return


def _pays(seconds: float, share: float) -> bool:
    """Whether other processes are worth starting, after this time and this share of the images."""
    return seconds > 1 and seconds * (1 - share) / share > SECONDS_THAT_PAY


def _num_processors() -> int:
    """Those that this process may run on, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decoded_in_parallel(decoder: Decoder, ranges: list[range], processes: int) -> Iterator[list[Damage]]:
    done = 0
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, (decoder,))
    try:
        for found in pool.map(_decode, ranges):
            yield found
            done += 1
    except BrokenProcessPool:  # a script without the guard `if __name__ == "__main__"` cannot be started again
        print("note: decoding goes on in one process, the others ended unexpectedly.", file=sys.stderr)
        yield from map(decoder, ranges[done:])
    finally:
        pool.shutdown(cancel_futures=True)


_of_this_process: list[Decoder] = []


def _start(decoder: Decoder) -> None:
    """Makes a process ready to decode."""
    _of_this_process.append(decoder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent could not say goodbye: its processes would wait for work for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _decode(numbers: range) -> list[Damage]:
    return _of_this_process[0](numbers)


def close_gaps(pixels: Path, shape: tuple[int, ...], size: int, damaged: list[Damage]) -> np.ndarray:
    """Takes the damaged images out of a file of `size` images: the numbers of those that are left, in order."""
    kept = np.setdiff1d(np.arange(size), [damage.number for damage in damaged])
    if damaged:
        images = np.memmap(pixels, np.uint8, "r+", shape=(size, *shape))
        step = max(1, CHUNK_BYTES // int(np.prod(shape)))
        for start in range(damaged[0].number, len(kept), step):  # forwards: no image is written over before it moved
            shifted = images[kept[start : start + step]]
            images[start : start + len(shifted)] = shifted
        images.flush()
        del images
        os.truncate(pixels, len(kept) * int(np.prod(shape)))
    return kept


@contextmanager
def _quiet_decoding() -> Iterator[None]:
    """Pillow warns of broken notes in files whose pixels are whole, thousands of times in a large set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Truncated File Read")
        yield


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every ten seconds in a file."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("left"), console=console, transient=True, refresh_per_second=4) as bar:
            yield partial(bar.advance, bar.add_task(description, total=total))
        return
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{description}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    yield advance

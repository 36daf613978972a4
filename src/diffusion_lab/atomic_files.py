"""Atomic writes: a file or folder appears under its final name only when it is complete, even if its writer is killed.

The content is written under a temporary name in the same folder and then renamed, which POSIX systems do atomically.
"""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path, *, durable: bool = False, concurrent: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file to write, and rename it to `path` when the block ends.

    If the block raises, the temporary file is deleted and `path` is unchanged. Missing parent folders are created.
    durable: whether to wait until the content and the name are on the disk, so that they survive a system crash.
    concurrent: whether the temporary name contains the process id, for files that several processes may write.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if concurrent else f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if durable:
            sync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # only exists if the block raised, for example because the disk is full
    if durable:
        sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; when the block ends, rename it to `path`, and sync it to the disk.

    If the block raises, the temporary folder is deleted. `path` must not exist. Only one process at a time may write
    `path`, because temporary folders that killed processes left behind are deleted at the beginning.
    """
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        shutil.rmtree(leftover)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            sync_file(file)
        sync_folder(partial)
        partial.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    _sync(os.open(path, os.O_RDONLY))


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; without effect on systems that cannot open folders."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    _sync(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

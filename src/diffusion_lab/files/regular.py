"""Reading of files and folders that other people wrote, so that each read ends and stays in the intended folder.

Only regular files of a limited size are opened. Folders are walked once, without the folders of the operating system.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

MAX_IMAGE_BYTES = 300_000_000
"""Largest size of an image file. Uncompressed RGB with the largest accepted number of pixels takes 268 MB."""
MAX_TEXT_BYTES = 20_000_000
"""Largest size of a file that describes a data set, such as its README.md."""
MAX_DIGITS = 300
"""Largest number of characters of a number in a YAML file. The largest float has 309 digits before the point."""
SYSTEM_TREES = {("proc",), ("sys",), ("dev",)}
"""Folders of the operating system whose files are devices and the state of processes."""
MAX_DEPTH = 200
"""Largest number of nested folders."""


def walk(
    root: str | os.PathLike[str],
    onerror: Callable[[OSError], object] | None = None,
    refused: Counter[str] | None = None,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder below `root` once, with the names of its folders and files, as `os.walk` does.

    Links are followed, except those that would lead through the whole machine, and folders that are nested too deeply.
    refused: counter of the folders that are not followed, by reason.
    """
    seen, top = set(), Path(os.path.realpath(root))
    for parent, folders, names in os.walk(root, followlinks=True, onerror=onerror):
        real = os.path.realpath(parent)
        reason = "" if real in seen else _reason_to_refuse(Path(real), top)
        if reason and refused is not None:
            refused[reason] += 1
        if reason or real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield parent, folders, names


def _reason_to_refuse(folder: Path, top: Path) -> str:
    if folder in top.parents:
        return "link to a folder that contains the set"
    if folder.parts[1:2] in SYSTEM_TREES and folder.parts[1:2] != top.parts[1:2]:  # /dev/shm may contain a set
        return "link to a folder of the operating system"
    return f"folder within more than {MAX_DEPTH} folders" if len(folder.parts) > MAX_DEPTH else ""


def visible_files(folder: Path, extensions: Container[str] | None = None) -> Iterator[Path]:
    """Yield all files below a folder except hidden ones.  Links are followed, but each folder is visited once.

    extensions: yield only files with one of these extensions, in lower case; None yields all files.
    """
    for parent, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(parent, name)
            for name in names
            if not name.startswith(".") and (extensions is None or os.path.splitext(name)[1].lower() in extensions)
        )


def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.  max_bytes: largest accepted size; None accepts any size.

    Raises OSError for a path that cannot be opened, for a larger file, and for a FIFO, a device, a socket or a folder,
    which are not opened: opening a FIFO blocks until another process writes to it, and a device may never end.
    """
    try:
        _require_regular(os.stat(path), max_bytes)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    except ValueError as error:  # a null byte, or text that no file name can contain
        raise OSError(errno.EINVAL, "the path is not a possible file name") from error
    try:
        _require_regular(os.fstat(descriptor), max_bytes)  # the path may have been replaced
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.  Raises the errors of `open_regular`."""
    with open_regular(path, max_bytes) as file:
        # Not more than its size: some files below /proc state a size of 0 and never end.
        return file.read(os.fstat(file.fileno()).st_size)


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a regular file or a link to one.  Unlike `Path.is_file`, it never raises an error."""
    return os.path.isfile(path)


def is_long_number(text: str) -> bool:
    """Return whether YAML may read a text as a number that takes long to compute.

    YAML 1.1 reads 1:59:59 as a number in base 60, in a time that grows with the square of the number of digits.
    """
    return len(text) > MAX_DIGITS and not set(text) - set("0123456789abcdefABCDEFxX_:.+-")


def memory_budget() -> int:
    """Return the number of bytes that a part of a set may take in memory at a time: a quarter of the memory."""
    try:
        return max(2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    except (AttributeError, ValueError, OSError):  # another operating system
        return 2**32


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


@dataclass(frozen=True)
class Places:
    """Folders below which files may lie whose paths are written in a table.  The first one that has a file is used."""

    folders: Sequence[str]

    def find(self, path: str) -> str | None:
        """Return the path of a file that a table names, or None if it is not below one of the folders.

        path: absolute, or relative to one of the folders.  Links are resolved before the check.
        """
        candidates = [os.path.normpath(os.path.join(folder, path)) for folder in self.folders]
        try:
            inside = [candidate for candidate in candidates if candidate.startswith(self._roots)]
            found = next(filter(os.path.lexists, inside), inside[0] if inside else None)
            return found if found is not None and os.path.realpath(found).startswith(self._roots) else None
        except (ValueError, OSError):  # for example a null byte
            return None

    @cached_property
    def _roots(self) -> tuple[str, ...]:
        roots = {root for folder in self.folders for root in (os.path.abspath(folder), os.path.realpath(folder))}
        return tuple(root.rstrip(os.sep) + os.sep for root in roots)


def _require_regular(status: os.stat_result, max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {gigabytes(status.st_size)}, more than {gigabytes(max_bytes)}")

"""Atomic writes: a file or folder appears under its final name only when it is complete, even if its writer is killed.

The content is written under a temporary name in the same folder and then renamed, which POSIX systems do atomically.
"""

import errno
import glob
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that is full or read-only, of a quota, and of a limit on the size of a file."""

PARTIAL = ".partial"


@contextmanager
def atomic_file(path: Path, *, durable: bool = False, concurrent: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file to write, and rename it to `path` when the block ends.

    If the block raises, the temporary file is deleted and `path` is unchanged. Missing parent folders are created.
    durable: whether to wait until the content and the name are on the disk, so that they survive a system crash.
    concurrent: whether the temporary name contains the process id, for files that several processes may write.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}" if concurrent else f"{path.name}{PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(partial):
        partial.unlink()  # of another person: writing to a link would change another file, and to a FIFO never end
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


def overwrite(path: Path, text: str) -> None:
    """Replace the text of a file in its place, which needs no space on a full disk; warn if this is not possible."""
    try:
        with path.open("r+b", buffering=0) as file:
            file.write(text.encode())
            file.truncate()
    except OSError as error:
        logger.warning("%s cannot be written (%s).", path, error.strerror)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in a folder. The caller must hold its lock.

    A temporary file whose name contains the id of another process is left to this process while it exists.
    """
    for path in folder.rglob(f"*{PARTIAL}"):
        owner = re.search(r"\.(\d+)\.partial$", path.name)
        if owner is None or int(owner[1]) == os.getpid() or not _exists(int(owner[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_error(error: BaseException) -> OSError | None:
    """Return the error of the disk that caused an exception, see `CANNOT_WRITE`; None if it has another cause.

    Libraries replace this error: torch.save raises a RuntimeError, and numpy raises an OSError without a number.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in CANNOT_WRITE:
            return cause
        if isinstance(cause, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(cause)):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        cause = cause.__cause__ or cause.__context__
    return None


def set_default_mode(path: Path) -> None:
    """Give a file the permissions of a file that `open` creates in its folder, which depend on the umask."""
    probe = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        probe.touch()
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink(missing_ok=True)


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


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

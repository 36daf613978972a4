"""Claims of jobs on finished batches of generated images, which all jobs that generate the same images share.

A job claims the batches that it needs in a file next to them. A batch is deleted only if no other job claims it:
neither a job that is running, nor an interrupted job, which the same command continues.
"""

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLAIM = ".claim"
"""Suffix of the file of a claim. A running job holds a lock on its file, which the operating system releases."""

LOCK = ".lock"


class BatchClaim:
    """The claim of one job on batches in a folder.

    folder: folder of the finished batches.  files: names of the files of the claimed batches.
    job: identifier of the job, the same when an interrupted command is repeated.
    """

    def __init__(self, folder: Path, files: Iterable[str], job: str) -> None:
        self.folder, self.files, self.job = folder, sorted(set(files)), job
        with _locked(folder):
            # The same command may run several times at once. The claim of an interrupted attempt is taken over.
            numbered = (folder / f"{job}_{number}{CLAIM}" for number in itertools.count())
            self.path, self._lock = next((path, lock) for path in numbered if (lock := _try_lock(path)) is not None)
            self.path.write_text(json.dumps(self.files) + "\n")

    def release(self, *, keep: bool = False) -> None:
        """End the claim, and delete the batches that no other job claims.

        keep: whether to keep the batches, and the claim on them, until the same job releases them without `keep`.
        """
        with _locked(self.folder):
            if not keep:
                self.path.unlink(missing_ok=True)
                others = [path for path in self.folder.glob(f"*{CLAIM}") if not self._takes_over(path)]
                claimed = {file for path in others for file in _claimed(path)}
                for file in set(self.files) - claimed:
                    (self.folder / file).unlink(missing_ok=True)
                if not others:
                    shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Release the lock of the claim. The claim remains, as that of an interrupted job, unless it was released."""
        os.close(self._lock)

    def _takes_over(self, path: Path) -> bool:
        """Remove the claim of an earlier, interrupted attempt of this job, and return whether `path` was one."""
        if not path.name.startswith(f"{self.job}_") or (lock := _try_lock(path)) is None:
            return False
        path.unlink(missing_ok=True)
        os.close(lock)
        return True


def _claimed(path: Path) -> list[str]:
    with suppress(OSError, ValueError):
        return [str(file) for file in json.loads(path.read_text())]
    return []


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; create the folder, also if another process has just removed it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_open_file(folder / LOCK, lock):
            break
        os.close(lock)
    try:
        yield
    finally:
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    """Return a file descriptor that holds the lock of a file; None if another process holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_open_file(path: Path, descriptor: int) -> bool:
    """Return whether `path` still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

"""Checkpoint files: whole or not there, and never read where they are damaged.

A checkpoint holds everything that a run needs to go on: network, averages, optimiser, learning-rate scheduler, the
times' history and the step. What a step trains on is a function of (seed, step), so no random state is kept.
"""

import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class DamagedCheckpointError(ValueError):
    """A file that is no whole checkpoint."""


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes beside `path`, makes sure that it is on the disk, then renames: a kill leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # half a file on a full disk
    _sync_folder(path.parent)


def keep_previous(folder: Path) -> None:
    """Gives `last.ckpt` a second name, `previous.ckpt`, which stays when the next one takes the first."""
    last, previous, partial = folder / LAST, folder / PREVIOUS, folder / (PREVIOUS + ".partial")
    if not last.is_file():
        return
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(last)
    except OSError:  # a file system without links: for a moment there is a previous one alone
        last.replace(previous)
    else:
        partial.replace(previous)


def keep(path: Path, name: str) -> None:
    """Gives a checkpoint a second name beside its own, under which it stays."""
    other, partial = path.with_name(name), path.with_name(f"{name}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, partial)
    partial.replace(other)


def read(path: Path, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """The checkpoint in a file; mmap leaves its tensors on the disk until they are used.

    Raises DamagedCheckpointError unless every record has the checksum that it was written with (torch.load itself
    checks none); FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    try:
        with ThreadPoolExecutor(max_workers=1) as beside:  # both take as long
            broken = beside.submit(_broken_record, path)
            try:
                checkpoint = torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
            except Exception:
                _refuse(path, broken.result())  # says more than whatever a damaged archive leads its readers to
                raise
            _refuse(path, broken.result())
    except DamagedCheckpointError:
        raise
    except Exception as error:
        raise DamagedCheckpointError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(checkpoint, dict):
        raise DamagedCheckpointError(f"{path} is no checkpoint: it holds {type(checkpoint).__name__}.")
    return checkpoint


def _refuse(path: Path, broken: str | None) -> None:
    if broken is not None:
        raise DamagedCheckpointError(f"{path} is damaged: {broken} has another checksum than was written.")


def _broken_record(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def read_run(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """The checkpoint of a training run.  Raises as `read`, and DamagedCheckpointError for a file of something else."""
    checkpoint = read(path, mmap=mmap)
    for part in ("state_dict", "global_step"):
        if part not in checkpoint:
            raise DamagedCheckpointError(f"{path} is no checkpoint of a run: it holds no {part}.")
    return checkpoint


def newest(folder: Path) -> Path | None:
    """The newest checkpoint of a run that can be read, `last.ckpt` or the one before; None where none was written.

    A damaged one is left aside with a warning.  Raises DamagedCheckpointError where all are damaged.
    """
    reasons = []
    for path in _written(folder):
        try:
            read_run(path, mmap=True)
        except DamagedCheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            print(f"warning: {reason} Going on from {path.name}.", file=sys.stderr)
        return path
    if reasons:
        raise DamagedCheckpointError(" ".join(f"{reason.rstrip('.')};" for reason in reasons).rstrip(";"))
    return None


def _written(folder: Path) -> Iterator[Path]:
    return (folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file())


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # a system whose folders cannot be opened keeps names without being asked
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

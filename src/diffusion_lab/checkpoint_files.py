"""Checkpoint files: written atomically, and verified by checksums when they are read.

A checkpoint contains everything that a run needs to resume: network, averages, optimizer, learning-rate scheduler, the
history of the time distribution and the step. It contains no random state, because the data and the random numbers of
a step are functions of (seed, step).
"""

import functools
import io
import logging
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffusion_lab.files.atomic import CANNOT_WRITE, atomic_file

logger = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

PARALLEL_VERIFICATION = 2**26
"""Bytes from which a file is verified while it is loaded: of smaller files, both are Python code, which is slower in
two threads than in one (115 ms and 78 ms for 1 MB).
"""


class DamagedCheckpointError(ValueError):
    """Error for a file that is not a complete checkpoint."""


def write(checkpoint: dict[str, Any], path: Path, *, concurrent: bool = False) -> None:
    """Write a checkpoint atomically: if the process is killed, `path` is the complete old or the complete new file.

    concurrent: whether several commands may write the same file at the same time.
    Raises the OSError of a write that fails, for example on a full disk; torch.save would raise a RuntimeError.
    """
    with atomic_file(path, durable=True, concurrent=concurrent) as partial, _ReportingFile(partial, "wb") as file:
        try:
            torch.save(checkpoint, file)
        except Exception as error:
            raise file.error or error from None


class _ReportingFile(io.FileIO):
    """A file that remembers the first error of a write. torch.save writes large blocks, which need no buffer."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        remaining = memoryview(data).cast("B")
        size = len(remaining)
        try:
            while remaining:  # the system may write only a part: up to 2 GB at a time, or until the disk is full
                remaining = remaining[super().write(remaining) :]
        except OSError as error:
            self.error = self.error or error
            raise
        return size


def keep_previous(folder: Path) -> None:
    """Link `last.ckpt` as `previous.ckpt`, so that it remains when the next checkpoint replaces `last.ckpt`."""
    last, previous, partial = folder / LAST, folder / PREVIOUS, folder / (PREVIOUS + ".partial")
    if not last.is_file():
        return
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(last)
    except OSError as error:  # a file system without hard links; last.ckpt is missing until the next write
        if error.errno in CANNOT_WRITE:
            raise
        last.replace(previous)
    else:
        partial.replace(previous)
        partial.unlink(missing_ok=True)  # rename has no effect if previous.ckpt is already a link to last.ckpt


def keep(path: Path, name: str) -> None:
    """Link a checkpoint under a second name in its folder, so that it remains when `path` is replaced."""
    other, partial = path.with_name(name), path.with_name(f"{name}.partial")
    partial.unlink(missing_ok=True)
    try:
        try:
            partial.hardlink_to(path)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, partial)
        partial.replace(other)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint.  mmap: whether to memory-map the tensors, which are then read when they are used.

    All content is from one file, even if training replaces the file at the same time.
    Raises DamagedCheckpointError if a checksum in the zip archive is wrong (torch.load does not verify checksums), or
    if the file is not a checkpoint. Raises FileNotFoundError if the file is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    try:
        with same_file(path) as opened:
            require_stored(opened)
            checkpoint = _load_and_verify(opened, map_location=map_location, mmap=mmap)
    except DamagedCheckpointError:
        raise
    except Exception as error:
        raise DamagedCheckpointError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(checkpoint, dict):
        raise DamagedCheckpointError(f"{path} is not a checkpoint: it contains a {type(checkpoint).__name__}.")
    return checkpoint


def _load_and_verify(path: Path, **settings: Any) -> Any:
    load = functools.partial(torch.load, path, weights_only=True, **settings)
    if path.stat().st_size < PARALLEL_VERIFICATION:
        _require_undamaged(path, _damaged_record(path))
        return load()
    with ThreadPoolExecutor(max_workers=1) as executor:
        damaged_record = executor.submit(_damaged_record, path)
        try:
            checkpoint = load()
        except Exception:
            _require_undamaged(path, damaged_record.result())  # this error is clearer than the error of torch.load
            raise
        _require_undamaged(path, damaged_record.result())
    return checkpoint


def require_stored(path: Path) -> None:
    """Raise ValueError for a zip archive with a compressed record, which can take any memory.

    torch.save never compresses. Files of its earlier formats are no zip archives.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            packed = [record.filename for record in archive.infolist() if record.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"its records must not be compressed, as torch.save writes them, got {packed[0][:100]!r}")


@contextmanager
def same_file(path: Path) -> Iterator[Path]:
    """Yield a path that names the current file at `path`, even after another file has replaced it (on Linux).

    The message of a DamagedCheckpointError that the block raises names `path` instead of the yielded path.
    """
    with path.open("rb") as file:
        opened = Path(f"/proc/self/fd/{file.fileno()}")
        try:
            yield opened if opened.exists() else path
        except DamagedCheckpointError as error:
            raise DamagedCheckpointError(str(error).replace(str(opened), str(path))) from error


def _require_undamaged(path: Path, damaged_record: str | None) -> None:
    if damaged_record is not None:
        raise DamagedCheckpointError(f"{path} is damaged: the checksum of {damaged_record} is wrong.")


def _damaged_record(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def read_run(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read the checkpoint of a training run.

    Raises the errors of `read`, and DamagedCheckpointError unless the file has a state_dict and a global_step, and its
    other parts have the types that training writes.
    """
    checkpoint = read(path, mmap=mmap)
    for part in ("state_dict", "global_step"):
        if part not in checkpoint:
            raise DamagedCheckpointError(f"{path} is not a run checkpoint: {part} is missing.")
    for part, kind in _TYPES.items():
        if part in checkpoint and type(checkpoint[part]) not in (kind, OrderedDict if kind is dict else kind):
            raise DamagedCheckpointError(
                f"{path} is not a run checkpoint: {part} is a {type(checkpoint[part]).__name__}, not a {kind.__name__}."
            )
    state, step = checkpoint["state_dict"], checkpoint["global_step"]
    others = [name for name, value in state.items() if not (isinstance(name, str) and _is_state(name, value))]
    if others or not 0 <= step < 2**63:
        reason = f"{str(others[0])[:80]} in state_dict is no tensor" if others else f"global_step is {step}"
        raise DamagedCheckpointError(f"{path} is not a run checkpoint: {reason[:200]}.")
    return checkpoint


_TYPES: dict[str, type] = {
    **dict.fromkeys(("state_dict", "loops", "callbacks", "ImageDataModule"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
    "global_step": int,
}


def _is_state(name: str, value: Any) -> bool:
    return isinstance(value, torch.Tensor) or name.endswith("_extra_state")


def newest(folder: Path) -> Path | None:
    """Return the newest readable checkpoint of a run, `last.ckpt` or `previous.ckpt`, or None if there is none.

    Warns if `last.ckpt` is damaged.  Raises DamagedCheckpointError if all checkpoints are damaged.
    """
    reasons = []
    for path in _existing(folder):
        try:
            read_run(path, mmap=True)
        except DamagedCheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            logger.warning("%s Using %s instead.", reason, path.name)
        return path
    if reasons:
        raise DamagedCheckpointError(" ".join(f"{reason.rstrip('.')};" for reason in reasons).rstrip(";"))
    return None


def _existing(folder: Path) -> Iterator[Path]:
    return (folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file())


def weights_mismatch(own: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Return an error message on the entries in which two state_dicts differ; empty if they have the same entries."""
    found = differing_entries(own, saved)
    return found and (
        f"the weights do not fit this module: {found}; build the module with the network, such as its labels, and the "
        "averages (`ema`) with which the weights were trained."
    )


def differing_entries(own: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Return the names of the entries in which two state_dicts differ as text; empty if they have the same entries.

    own: state_dict of a module.  saved: state_dict in a checkpoint.
    """
    shapes = [{name: list(getattr(value, "shape", ())) for name, value in state.items()} for state in (own, saved)]
    differences = {
        "only in the checkpoint": [name for name in saved if name not in own],
        "only in the module": [name for name in own if name not in saved],
        "of another shape": [name for name in own if name in saved and shapes[0][name] != shapes[1][name]],
    }
    return ", and ".join(f"{_first_names(names)} {where}" for where, names in differences.items() if names)


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")

"""The folder of decoded sets: each is built once, by one process while others wait, and mapped by all.

A set is a folder <key> of raw pixels [N, C, H, W] and little-endian labels, of meta.json (shape, class names, where
from, how made, sha256 of the content) and of damaged.csv (number, file and reason of each image left out), if any are.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffusion_lab.data.images import Images
from diffusion_lab.paths import default_cache_folder

PIXELS, LABELS, META, DAMAGED = "pixels.uint8", "labels.int64", "meta.json", "damaged.csv"


@dataclass(frozen=True)
class Meta:
    """What a built set says of itself.  shape: [N, C, H, W].  origin: source and preparation, for people."""

    shape: tuple[int, int, int, int]
    class_names: tuple[str, ...]
    fingerprint: str
    num_damaged: int
    first_damage: str
    origin: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A built set in the cache."""

    folder: Path
    meta: Meta

    def images(self) -> Images:
        return Images.open(
            self.folder / PIXELS,
            self.folder / LABELS,
            self.meta.shape,
            class_names=self.meta.class_names,
            fingerprint=self.meta.fingerprint,
        )


@dataclass(frozen=True)
class ImageCache:
    """folder: None is that of the environment variable DIFFUSION_LAB_CACHE, or of the person's own cache."""

    folder: Path | None = None

    @property
    def references(self) -> Path:
        """Where statistics of sets are kept."""
        return (self.folder or default_cache_folder()).expanduser() / "references"

    def entry(self, key: str, build: Callable[[Path], Meta]) -> Entry:
        """The set named `key`, built now unless it is there and whole.

        build: fills a fresh folder and says what is in it.  Raises ValueError where the cache cannot be written.
        """
        folder = (self.folder or default_cache_folder()).expanduser() / "images"
        if found := _whole(folder / key):
            return found
        try:
            _made(folder)
            with _locked(folder / f"{key}.lock", key):
                return _whole(folder / key) or _built(folder, key, build)
        except FileNotFoundError:
            raise  # the set's own
        except OSError as error:
            raise ValueError(
                f"data.cache_folder must be a folder that can be written to with enough space, got {folder}: "
                f"{error.strerror or error}; DIFFUSION_LAB_CACHE names another too."
            ) from error


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # such as below /proc: not the set's own
        raise PermissionError(error.errno, "it cannot be made") from error


def write_meta(folder: Path, meta: Meta) -> None:
    (folder / META).write_text(json.dumps(asdict(meta), indent=1))


def _whole(folder: Path) -> Entry | None:
    """The entry, if all of it is there."""
    try:
        content = json.loads((folder / META).read_text())
        content.update(shape=tuple(content["shape"]), class_names=tuple(content["class_names"]))
        meta = Meta(**content)
        num_images, *image = meta.shape
        sizes = [(folder / name).stat().st_size for name in (PIXELS, LABELS)]
        whole = sizes == [num_images * image[0] * image[1] * image[2], 8 * num_images]
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return Entry(folder, meta) if whole else None


def _built(folder: Path, key: str, build: Callable[[Path], Meta]) -> Entry:
    """Builds an entry under another name and renames it when it is whole; the lock is held."""
    if (folder / key).exists():
        print(f"warning: {folder / key} is damaged and is built again.", file=sys.stderr)
        shutil.rmtree(folder / key)
    for left_behind in folder.glob(f"{key}.*.partial"):  # of a process that was killed
        shutil.rmtree(left_behind)
    partial = folder / f"{key}.{os.getpid()}.partial"
    partial.mkdir()
    try:
        meta = build(partial)
        write_meta(partial, meta)
        for name in (PIXELS, LABELS, META):
            _sync(partial / name)
        _sync(partial)
        partial.rename(folder / key)
        _sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Entry(folder / key, meta)


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk: a name must not survive a crash that its content does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path, key: str) -> Iterator[None]:
    """Holds the lock of an entry.  It belongs to the process: where that dies, the system lets go of it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"note: waiting for another process that prepares {key}.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

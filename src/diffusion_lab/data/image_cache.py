"""Cache of decoded image sets: each set is built once, by one process while others wait, and memory-mapped by all.

A set is a folder <key> that contains the raw pixels [N, C, H, W], the labels as little-endian int64, meta.json (shape,
class names, source, preparation, sha256 of the content) and, if damaged images were left out, damaged.csv (index in the
split, file name and reason for each of these images).
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from diffusion_lab.data.images import Images
from diffusion_lab.files.atomic import atomic_folder
from diffusion_lab.files.regular import is_regular, read_regular
from diffusion_lab.paths import NODE_CACHE, default_cache_folder, expanduser
from diffusion_lab.reporting.csv_files import read_csv

logger = logging.getLogger(__name__)

PIXELS, LABELS, META, DAMAGED = "pixels.uint8", "labels.int64", "meta.json", "damaged.csv"
FILES = (PIXELS, LABELS, META, DAMAGED)
"""All files of an entry."""
MAX_META_BYTES = 100_000_000
"""Largest size of meta.json, which contains the names of all classes."""


@dataclass(frozen=True)
class Meta:
    """Content of meta.json.  shape: shape of the set, (N, C, H, W).

    origin: source, split and preparation of the set, which are only stored to inform the user.
    """

    shape: tuple[int, int, int, int]
    class_names: tuple[str, ...]
    fingerprint: str
    num_damaged: int
    first_damage: str
    origin: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A decoded set in the cache."""

    folder: Path
    meta: Meta

    def numbers(self) -> np.ndarray:
        """Return the index of each image in its split, int64 [N]; damaged images of the split are left out."""
        all_numbers = np.arange(self.meta.shape[0] + self.meta.num_damaged)
        if not self.meta.num_damaged:
            return all_numbers
        damaged = [int(row["number"]) for row in read_csv(self.folder / DAMAGED)]
        return np.setdiff1d(all_numbers, damaged)

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
    """Cache folder of decoded sets.

    folder: path of the folder; None uses the environment variable DIFFUSION_LAB_CACHE or the user's cache folder.
    """

    folder: Path | None = None

    @property
    def references(self) -> Path:
        """Folder for the feature statistics of reference sets."""
        return expanduser(self.folder or default_cache_folder()) / "references"

    def entry(self, key: str, build: Callable[[Path], Meta]) -> Entry:
        """Return the set named `key`; build it if it is missing or incomplete.

        build: function that writes pixels and labels into an empty folder and returns the content of meta.json.
        If the environment variable DIFFUSION_LAB_NODE_CACHE is set, the set is read from a copy in this folder.
        Raises ValueError if the cache cannot be written.
        """
        entry = self._shared_entry(key, build)
        node_folder = os.environ.get(NODE_CACHE)
        return _copy_on_node(entry, expanduser(node_folder) / "diffusion_lab") if node_folder else entry

    def _shared_entry(self, key: str, build: Callable[[Path], Meta]) -> Entry:
        folder = expanduser(self.folder or default_cache_folder()) / "images"
        if found := _read_entry(folder / key):
            return found
        try:
            _make_folder(folder)
            with _lock(folder / f"{key}.lock", key):
                return _read_entry(folder / key) or _build_entry(folder / key, build)
        except FileNotFoundError:
            raise  # a file of the source is missing
        except OSError as error:
            raise ValueError(
                f"data.cache_folder must be a writable folder with enough free space, got {folder}: "
                f"{error.strerror or error}; set data.cache_folder or DIFFUSION_LAB_CACHE to another folder."
            ) from error


def _copy_on_node(entry: Entry, folder: Path) -> Entry:
    """Return the copy of an entry in a folder on the disk of this node; copy the entry if there is no copy yet.

    Returns the entry itself if it cannot be copied, for example because the disk is full.
    """
    target = folder / "images" / entry.folder.name
    if (found := _read_entry(target)) and found.meta == entry.meta:
        return found
    try:
        _make_folder(target.parent)
        with _lock(target.with_name(f"{target.name}.lock"), f"the copy of {target.name} on this node"):
            if (found := _read_entry(target)) and found.meta == entry.meta:
                return found
            shutil.rmtree(target, ignore_errors=True)
            with atomic_folder(target) as partial:
                for name in filter(lambda name: is_regular(entry.folder / name), FILES):  # a device may never end
                    shutil.copyfile(entry.folder / name, partial / name)
    except OSError as error:
        message = "the images are read from %s, because they cannot be copied to %s (%s): %s"
        logger.warning(message, entry.folder, folder, NODE_CACHE, error.strerror or error, extra={"all_ranks": True})
        return entry
    return Entry(target, entry.meta)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # for example below /proc; not to be mistaken for a missing source file
        raise PermissionError(error.errno, "the folder cannot be created") from error


def _read_entry(folder: Path) -> Entry | None:
    """Return the entry in a folder, or None if it is missing or incomplete."""
    try:
        content = json.loads(read_regular(folder / META, MAX_META_BYTES))
        content.update(shape=tuple(content["shape"]), class_names=tuple(content["class_names"]))
        meta = Meta(**content)
        is_complete = _has_expected_types(meta) and all(
            is_regular(folder / name) and (folder / name).stat().st_size == size
            for name, size in ((PIXELS, math.prod(meta.shape)), (LABELS, 8 * meta.shape[0]))
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return Entry(folder, meta) if is_complete else None


def _has_expected_types(meta: Meta) -> bool:
    is_shape = len(meta.shape) == 4 and all(type(side) is int and side > 0 for side in meta.shape)
    texts = (meta.fingerprint, meta.first_damage, *meta.class_names)
    return is_shape and type(meta.num_damaged) is int and all(isinstance(text, str) for text in texts)


def _build_entry(folder: Path, build: Callable[[Path], Meta]) -> Entry:
    """Build an entry and replace an incomplete one.  The caller must hold the lock of the entry."""
    if folder.exists():
        message = "the cached image set %s is damaged and will be rebuilt."
        logger.warning(message, folder, extra={"all_ranks": True})  # any rank may be the one that rebuilds it
        shutil.rmtree(folder)
    with atomic_folder(folder) as partial:
        meta = build(partial)
        (partial / META).write_text(json.dumps(asdict(meta), indent=1))
    return Entry(folder, meta)


@contextmanager
def _lock(path: Path, key: str) -> Iterator[None]:
    """Hold the lock of an entry.  The operating system releases the lock when the process ends."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process to prepare %s.", key)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

"""Where a set's image files are: a Hugging Face hub name or a local folder -> the bytes of each image, and its label.

The library `datasets` takes more than a second to import: only what opens a set waits for it.
"""

import errno
import gc
import hashlib
import json
import logging
import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np

from diffusion_lab.data.decoding import DamagedImageError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """An opened split.  dataset: one column, of undecoded images.  label: int64 [N].  class_names: may be empty."""

    dataset: "Dataset"
    label: np.ndarray
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ImageSource:
    """hub_name: NAME or NAME:CONFIG on the Hugging Face hub, used where `path` is None.  path: a local folder.

    image_column, label_column: their names in the set; label_column None gives label 0 to all.
    """

    hub_name: str | None
    path: Path | None
    image_column: str
    label_column: str | None

    def __str__(self) -> str:
        return str(self.hub_name if self.path is None else self.path)

    def locate(self) -> None:
        """Raises FileNotFoundError, saying what was looked for and how to get it, unless the set is within reach."""
        if self.path is not None:
            if not self.path.is_dir():
                raise FileNotFoundError(f"data.path must be a folder of images or parquet files, got {self.path}.")
            if next(_files(self.path), None) is None:
                raise FileNotFoundError(
                    f"data.path must hold images or parquet files (train-*.parquet, test-*.parquet), "
                    f"but {self.path} is empty."
                )
        elif self.hub_name is None:
            raise FileNotFoundError("data.path must name a folder of images or parquet files, got nothing.")
        elif not _hub_in_reach():
            self._require_cached()

    def identity(self, split: str) -> str:
        """What changes with the set's files: their names, sizes and times in a folder, the hub's own for its sets."""
        if self.path is None:
            return str(self._loaded(split, None)._fingerprint)
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for file in sorted(_files(self.path)):
            status = file.stat()
            digest.update(json.dumps([str(file), status.st_size, status.st_mtime_ns]).encode())
        return digest.hexdigest()

    def splits(self) -> list[str]:
        """The names of the set's splits, without decoding anything.  Raises as `open`."""
        self.locate()
        import datasets

        name, _, config = str(self).partition(":") if self.path is None else (str(self.path), "", "")
        try:
            builder = datasets.load_dataset_builder(name, config or None)
        except Exception as error:  # as in `_loaded`
            refusal = self._refusal(_first_cause(error), "train")
        else:
            return [str(split) for split in builder.info.splits or builder.config.data_files]
        gc.collect()
        raise refusal

    def open(self, split: str, work_folder: Path) -> Rows:
        """The images and labels of a split.  work_folder: for what `datasets` unpacks from a local folder.

        Raises ValueError where the set has no such split or columns.
        """
        dataset = self._loaded(split, None if self.path is None else work_folder)
        self._require_columns(dataset)
        label, names = self._labels(dataset)
        from datasets import Image

        images = dataset.select_columns([self.image_column]).cast_column(self.image_column, Image(decode=False))
        return Rows(images, label, names)

    def _loaded(self, split: str, work_folder: Path | None) -> "Dataset":
        self.locate()
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        if self.path is not None:
            datasets.logging.set_verbosity(logging.CRITICAL)  # what it says of damaged files is in the sentence below
        name, _, config = str(self).partition(":") if self.path is None else (str(self.path), "", "")
        try:
            return datasets.load_dataset(
                name, config or None, split=split, cache_dir=None if work_folder is None else str(work_folder)
            )
        except Exception as error:  # damaged files raise anything, from pyarrow's errors to KeyError
            refusal = self._refusal(_first_cause(error), split)
        # Not raised above: the error would keep pyarrow's reader alive, whose threads then never end with the process.
        gc.collect()
        raise refusal

    def _refusal(self, cause: BaseException, split: str) -> Exception:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return OSError(cause.errno, cause.strerror)  # the cache's trouble, not the set's
        setting = "data.hub_name" if self.path is None else "data.path"
        reason = " ".join(str(cause).split()) or type(cause).__name__
        return ValueError(f"{setting}={self} cannot be read as images with a split {split!r}: {reason}")

    def _require_columns(self, dataset: "Dataset") -> None:
        columns = dataset.column_names
        holding = [name for name in columns if _may_hold_images(dataset.features[name])]
        if not holding:
            raise ValueError(f"{self} holds no images: its columns are {', '.join(columns)}.")
        for column in [self.image_column] + ([self.label_column] if self.label_column else []):
            if column not in columns:
                hint = "; data.label_column=null trains without labels" if column == self.label_column else ""
                raise ValueError(
                    f"data.image_column and data.label_column must be among {columns} for {self}, got {column}{hint}."
                )
        if self.image_column not in holding:
            raise ValueError(f"data.image_column must be one of {', '.join(holding)}, got {self.image_column}.")
        if not len(dataset):
            raise ValueError(f"{self} holds no images: the split has 0 rows.")

    def _labels(self, dataset: "Dataset") -> tuple[np.ndarray, tuple[str, ...]]:
        if self.label_column is None:
            return np.zeros(len(dataset), dtype=np.int64), ()
        import pyarrow as pa

        column = dataset.data.column(self.label_column)
        names = getattr(dataset.features[self.label_column], "names", None)
        if column.null_count:
            raise ValueError(f"data.label_column={self.label_column} has no value for {column.null_count} images.")
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found, label = np.unique(np.asarray(column.to_pylist(), dtype=str), return_inverse=True)
            return label.astype(np.int64), tuple(str(name) for name in found)
        if not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
            raise ValueError(
                f"data.label_column must hold whole numbers or names, got {column.type} in {self.label_column}."
            )
        label = np.asarray(column.to_numpy(), dtype=np.int64)
        if label.min() < 0 or (names and label.max() >= len(names)):
            wanted = f"in 0..{len(names) - 1}" if names else "at least 0"
            wrong = label.min() if label.min() < 0 else label.max()
            raise ValueError(f"labels must be {wanted}, got {wrong} in data.label_column={self.label_column}.")
        return label, tuple(names or ())

    def _require_cached(self) -> None:
        # The libraries would retry an unreachable hub for 24 seconds; told that they are offline, they look in their
        # cache at once. Both read the variable when first imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
        import datasets

        name, _, config = str(self.hub_name).partition(":")
        try:
            datasets.load_dataset_builder(name, config or None)
        except (ConnectionError, OSError, ValueError) as error:
            raise FileNotFoundError(
                f"data.hub_name={self.hub_name} is neither in the local cache nor within reach (no network?): run once "
                "with network, or set data.path to a folder that holds its files (train-*.parquet, test-*.parquet)."
            ) from error


def contents(dataset: "Dataset", start: int, stop: int) -> Iterator[bytes | DamagedImageError]:
    """The bytes of the image files start..stop-1, or why there are none."""
    for item in _items(dataset, start, stop):
        if item["bytes"] is not None:
            yield item["bytes"]
        elif item["path"]:
            yield _read(item["path"])
        else:
            yield DamagedImageError("there is none in this row")


def file_name(dataset: "Dataset", number: int) -> str:
    """The name of an image's file, where the set tells it."""
    (item,) = _items(dataset, number, number + 1)
    return str(item["path"] or "")


def _items(dataset: "Dataset", start: int, stop: int) -> list[dict[str, Any]]:
    items = dataset.with_format("arrow")[start:stop].column(0).to_pylist()
    return [item or {"bytes": None, "path": None} for item in items]


def _read(path: str) -> bytes | DamagedImageError:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return DamagedImageError(f"its file cannot be read: {error.strerror}")


def _may_hold_images(feature: Any) -> bool:
    kind = getattr(feature, "dtype", None)
    keys = set(feature) if isinstance(feature, dict) else set()
    return type(feature).__name__ == "Image" or kind in ("binary", "large_binary") or keys == {"bytes", "path"}


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; links to folders are followed, each folder once."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _first_cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__) is not None:
        error = cause
    return error


def _hub_in_reach(timeout: float = 2.0) -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():
        return True  # behind a proxy a direct connection says nothing
    endpoint: Any = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout).close()
    except OSError:
        return False
    return True

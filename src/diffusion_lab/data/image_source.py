"""Sources of image sets: a Hugging Face hub name or a local folder -> the bytes and the label of each image.

The library `datasets` takes more than a second to import, so it is only imported when a set is opened.
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
    """An opened split.

    dataset: data set with a single column of undecoded images.  label: labels, int64 [N].
    class_names: names of the classes; empty for a set without class names.
    """

    dataset: "Dataset"
    label: np.ndarray
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ImageSource:
    """Location of an image set.

    hub_name: NAME or NAME:CONFIG on the Hugging Face hub, used if `path` is None.  path: local folder.
    image_column, label_column: names of the columns; if label_column is None, all images get label 0.
    """

    hub_name: str | None
    path: Path | None
    image_column: str
    label_column: str | None

    def __str__(self) -> str:
        return str(self.hub_name if self.path is None else self.path)

    def locate(self) -> None:
        """Raise FileNotFoundError if the set can neither be found locally nor downloaded.

        The error message contains the missing file or data set, and the remedy.
        """
        if self.path is not None:
            if not self.path.is_dir():
                raise FileNotFoundError(f"data.path must be a folder of images or parquet files, got {self.path}.")
            if next(_files(self.path), None) is None:
                raise FileNotFoundError(
                    f"data.path must contain images or parquet files (train-*.parquet, test-*.parquet), "
                    f"but {self.path} is empty."
                )
        elif self.hub_name is None:
            raise FileNotFoundError("data.path must name a folder of images or parquet files, got null.")
        elif not _hub_is_reachable():
            self._require_cached()

    def identity(self, split: str) -> str:
        """Return a string that changes with the names, sizes and modification times of the files of the set.

        For a set from the hub, the string is the fingerprint that the library `datasets` computes.
        """
        if self.path is None:
            return str(self._load(split, None)._fingerprint)
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for file in sorted(_files(self.path)):
            status = file.stat()
            digest.update(json.dumps([str(file), status.st_size, status.st_mtime_ns]).encode())
        return digest.hexdigest()

    def splits(self) -> list[str]:
        """Return the names of the splits without reading images.

        Raises FileNotFoundError if the set is missing, and ValueError if it is not an image set.
        """
        self.locate()
        import datasets

        name, _, config = str(self).partition(":") if self.path is None else (str(self.path), "", "")
        try:
            builder = datasets.load_dataset_builder(name, config or None)
        except Exception as error:  # see `_load`
            failure = self._load_error(_first_cause(error), "train")
        else:
            return [str(split) for split in builder.info.splits or builder.config.data_files]
        gc.collect()
        raise failure

    def open(self, split: str, work_folder: Path) -> Rows:
        """Open the images and labels of a split.

        work_folder: folder into which `datasets` unpacks local files.
        Raises FileNotFoundError if the set is missing, and ValueError if it does not have the split or the columns.
        """
        dataset = self._load(split, None if self.path is None else work_folder)
        self._require_columns(dataset)
        label, names = self._labels(dataset)
        from datasets import Image

        images = dataset.select_columns([self.image_column]).cast_column(self.image_column, Image(decode=False))
        return Rows(images, label, names)

    def _load(self, split: str, work_folder: Path | None) -> "Dataset":
        self.locate()
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        if self.path is not None:
            datasets.logging.set_verbosity(logging.CRITICAL)  # the error below contains its log messages
        name, _, config = str(self).partition(":") if self.path is None else (str(self.path), "", "")
        try:
            return datasets.load_dataset(
                name, config or None, split=split, cache_dir=None if work_folder is None else str(work_folder)
            )
        except Exception as error:  # damaged files raise errors of any type, from pyarrow errors to KeyError
            failure = self._load_error(_first_cause(error), split)
        # Raised outside of the except block, where the error would keep a pyarrow reader alive. The reader's threads
        # would then not end at exit.
        gc.collect()
        raise failure

    def _load_error(self, cause: BaseException, split: str) -> Exception:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return OSError(cause.errno, cause.strerror)  # an error of the cache, not of the image set
        setting = "data.hub_name" if self.path is None else "data.path"
        reason = " ".join(str(cause).split()) or type(cause).__name__
        return ValueError(f"{setting}={self} cannot be read as images with a split {split!r}: {reason}")

    def _require_columns(self, dataset: "Dataset") -> None:
        columns = dataset.column_names
        candidates = [name for name in columns if _may_contain_images(dataset.features[name])]
        if not candidates:
            raise ValueError(f"{self} contains no images: its columns are {', '.join(columns)}.")
        for column in [self.image_column] + ([self.label_column] if self.label_column else []):
            if column not in columns:
                setting, accepted, remedy = "data.image_column", candidates, ""
                if column == self.label_column:
                    setting, accepted = "data.label_column", columns
                    remedy = "; set data.label_column=null to use no labels"
                raise ValueError(f"{setting} must be one of {', '.join(accepted)} for {self}, got {column}{remedy}.")
        if self.image_column not in candidates:
            raise ValueError(f"data.image_column must be one of {', '.join(candidates)}, got {self.image_column}.")
        if not len(dataset):
            raise ValueError(f"{self} contains no images: the requested split has 0 rows.")

    def _labels(self, dataset: "Dataset") -> tuple[np.ndarray, tuple[str, ...]]:
        if self.label_column is None:
            return np.zeros(len(dataset), dtype=np.int64), ()
        import pyarrow as pa

        column = dataset.data.column(self.label_column)
        names = getattr(dataset.features[self.label_column], "names", None)
        if column.null_count:
            raise ValueError(f"data.label_column={self.label_column} has no value for {column.null_count} images.")
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            unique, label = np.unique(np.asarray(column.to_pylist(), dtype=str), return_inverse=True)
            return label.astype(np.int64), tuple(str(name) for name in unique)
        if not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
            raise ValueError(
                f"data.label_column must contain whole numbers or names, got {column.type} in {self.label_column}."
            )
        label = np.asarray(column.to_numpy(), dtype=np.int64)
        if label.min() < 0 or (names and label.max() >= len(names)):
            accepted = f"in 0..{len(names) - 1}" if names else "at least 0"
            value = label.min() if label.min() < 0 else label.max()
            raise ValueError(
                f"data.label_column={self.label_column} must contain labels that are {accepted}, got {value}."
            )
        return label, tuple(names or ())

    def _require_cached(self) -> None:
        # Without this variable, the libraries retry an unreachable hub for 24 seconds before they use their cache. The
        # libraries read the variable when they are first imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
        import datasets

        name, _, config = str(self.hub_name).partition(":")
        try:
            datasets.load_dataset_builder(name, config or None)
        except (ConnectionError, OSError, ValueError) as error:
            raise FileNotFoundError(
                f"data.hub_name={self.hub_name} is not in the local cache and the hub cannot be reached; run once with "
                "network access, or set data.path to a folder with the set's files (train-*.parquet, test-*.parquet)."
            ) from error


def read_images(dataset: "Dataset", start: int, stop: int) -> Iterator[bytes | DamagedImageError]:
    """Yield the file content of the images start..stop-1, or an error in place of each file that cannot be read."""
    for item in _items(dataset, start, stop):
        if item["bytes"] is not None:
            yield item["bytes"]
        elif item["path"]:
            yield _read(item["path"])
        else:
            yield DamagedImageError("the row has no image")


def file_name(dataset: "Dataset", number: int) -> str:
    """Return the file name of the image with index `number`, or "" if the set does not store file names."""
    (item,) = _items(dataset, number, number + 1)
    return str(item["path"] or "")


def _items(dataset: "Dataset", start: int, stop: int) -> list[dict[str, Any]]:
    items = dataset.with_format("arrow")[start:stop].column(0).to_pylist()
    return [item or {"bytes": None, "path": None} for item in items]


def _read(path: str) -> bytes | DamagedImageError:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return DamagedImageError(f"the image file cannot be read: {error.strerror}")


def _may_contain_images(feature: Any) -> bool:
    kind = getattr(feature, "dtype", None)
    keys = set(feature) if isinstance(feature, dict) else set()
    return type(feature).__name__ == "Image" or kind in ("binary", "large_binary") or keys == {"bytes", "path"}


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder except hidden ones.  Links are followed, but each folder is visited once."""
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


def _hub_is_reachable(timeout: float = 2.0) -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():
        return True  # behind a proxy, a direct connection may fail although the hub is reachable
    endpoint: Any = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout).close()
    except OSError:
        return False
    return True

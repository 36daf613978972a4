"""Undecoded images of a split: the rows of a table, or files."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_lab.data.decoding import DamagedImageError, header_size

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ImageFiles:
    """Images that are files.  paths: path of each file."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def items(self, start: int, stop: int) -> list[dict[str, Any]]:
        return [{"bytes": None, "path": path} for path in self.paths[start:stop]]


@dataclass(frozen=True)
class ImageColumn:
    """Images that are rows of a data set.  dataset: data set with a single column of undecoded images."""

    dataset: "Dataset"

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self, start: int, stop: int) -> list[dict[str, Any]]:
        rows = self.dataset.with_format("arrow")[start:stop].column(0).to_pylist()
        return [row or {"bytes": None, "path": None} for row in rows]


UndecodedImages = ImageFiles | ImageColumn


def read_images(images: UndecodedImages, start: int, stop: int) -> Iterator[bytes | DamagedImageError]:
    """Yield the file content of the images start..stop-1, or an error in place of each file that cannot be read."""
    for item in images.items(start, stop):
        if item["bytes"] is not None:
            yield item["bytes"]
        elif item["path"]:
            yield _read(item["path"])
        else:
            yield DamagedImageError("the row has no image")


def file_name(images: UndecodedImages, number: int) -> str:
    """Return the file name of the image with index `number`, or "" if the set does not store file names."""
    (item,) = images.items(number, number + 1)
    return str(item["path"] or "")


def read_sizes(images: UndecodedImages, max_images: int) -> np.ndarray:
    """Return width and height of at most max_images images, evenly sampled, from their headers: int64 [N, 2]."""
    sizes = []
    for number in np.unique(np.linspace(0, len(images) - 1, min(max_images, len(images))).astype(int)).tolist():
        (item,) = images.items(number, number + 1)
        content = item["path"] if item["bytes"] is None else io.BytesIO(item["bytes"])
        if content and (size := header_size(content)) is not None:
            sizes.append(size)
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _read(path: str) -> bytes | DamagedImageError:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return DamagedImageError(f"the image file cannot be read: {error.strerror}")

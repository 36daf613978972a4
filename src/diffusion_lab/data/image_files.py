"""Undecoded images of a split: the rows of a table, or files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from diffusion_lab.data.decoding import DamagedImageError, header_size
from diffusion_lab.files.regular import MAX_IMAGE_BYTES, Places, gigabytes, open_regular

if TYPE_CHECKING:
    from datasets import Dataset

OUTSIDE = "its path is outside of the folder of the set; data.image_root=FOLDER allows paths below FOLDER"
"""Reason for which an image is left out whose path, which a table contains, names a file in another place."""


@dataclass(frozen=True)
class ImageFiles:
    """Images that are files.

    paths: path of each file.  places: folders below which the files must lie; None for a folder of images, in which
        links are followed.
    """

    paths: Sequence[str]
    places: Places | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def items(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        return ({"bytes": None, "path": path} for path in self.paths[start:stop])


@dataclass(frozen=True)
class ImageColumn:
    """Images that are rows of a data set.

    dataset: data set with a single column of undecoded images.
    places: folders below which image files must lie that the rows name.
    """

    dataset: "Dataset"
    places: Places

    def __len__(self) -> int:
        return len(self.dataset)

    def items(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield {"bytes", "path"} of each row, one row at a time; "bytes" is an error for a row that is too large."""
        for row in self.dataset.with_format("arrow")[start:stop].column(0):
            content = row["bytes"] if row.is_valid else row
            if not row.is_valid:
                yield {"bytes": None, "path": None}
            elif content.is_valid and (size := content.as_buffer().size) > MAX_IMAGE_BYTES:
                yield {"bytes": _too_large(size), "path": _text(row["path"])}
            else:
                yield {"bytes": content.as_py(), "path": _text(row["path"])}


class UndecodedImages(Protocol):
    """Images that are not decoded.  places: folders below which files must lie that the items name; None: any."""

    @property
    def places(self) -> Places | None: ...

    def __len__(self) -> int: ...

    def items(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield {"bytes", "path"} of each image; "bytes" is None for a file, or an error for a damaged image."""


def read_images(images: UndecodedImages, start: int, stop: int) -> Iterator[bytes | DamagedImageError]:
    """Yield the file content of the images start..stop-1, or an error in place of each file that cannot be read."""
    for item in images.items(start, stop):
        try:
            with _opened(item, images.places) as file:
                content = file.read(_size(file))
        except OSError as error:
            yield DamagedImageError(f"the image file cannot be read: {error.strerror}")
        except DamagedImageError as error:
            yield error
        else:
            yield content


def file_name(images: UndecodedImages, number: int) -> str:
    """Return the file name of the image with index `number`, or "" if the set does not store file names."""
    (item,) = images.items(number, number + 1)
    return str(item["path"] or "")


def read_sizes(images: UndecodedImages, max_images: int) -> np.ndarray:
    """Return width and height of at most max_images images, evenly sampled, from their headers: int64 [N, 2]."""
    sizes = []
    for number in np.unique(np.linspace(0, len(images) - 1, min(max_images, len(images))).astype(int)).tolist():
        (item,) = images.items(number, number + 1)
        try:
            with _opened(item, images.places) as file:
                size = header_size(file)
        except (OSError, DamagedImageError):
            continue
        if size is not None:
            sizes.append(size)
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _opened(item: dict[str, Any], places: Places | None) -> BinaryIO:
    """Open the content of an image.  Raises OSError or DamagedImageError if there is none or if it is refused."""
    content, path = item["bytes"], item["path"]
    if isinstance(content, DamagedImageError):
        raise content
    if content is not None:
        return BytesIO(content)
    if not path:
        raise DamagedImageError("the row has no image")
    place = path if places is None else places.find(path)
    if place is None:
        raise DamagedImageError(OUTSIDE)
    return open_regular(place, MAX_IMAGE_BYTES)


def _size(file: BinaryIO) -> int:
    """Return the size of an opened file.  Some files below /proc state a size of 0 and never end."""
    return len(file.getbuffer()) if isinstance(file, BytesIO) else os.fstat(file.fileno()).st_size


def _text(scalar: Any) -> str | None:
    try:
        return None if scalar.as_py() is None else str(scalar.as_py())
    except UnicodeDecodeError:
        return None


def _too_large(num_bytes: int) -> DamagedImageError:
    return DamagedImageError(f"the file has {gigabytes(num_bytes)}, more than {gigabytes(MAX_IMAGE_BYTES)}")

"""Sources of images of unknown origin, such as samples of another program: folders, image files, `.zip` and `.npz`."""

import hashlib
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_lab.data.decoding import DamagedImageError
from diffusion_lab.data.image_files import ImageFiles, UndecodedImages, read_sizes
from diffusion_lab.data.image_source import Rows
from diffusion_lab.data.npz_arrays import samples_size, unpack_samples
from diffusion_lab.files import image_folders
from diffusion_lab.files.image_folders import EXTENSIONS, counted
from diffusion_lab.files.regular import MAX_IMAGE_BYTES, gigabytes, open_regular
from diffusion_lab.reporting.text import terminal_text

SPLIT = "images"
"""Name of the only split of such a set."""


@dataclass(frozen=True)
class SampleSource:
    """Location of a set of images, which are read in natural order of their names: 2.png before 10.png.

    path: folder whose image files are read, also those in its subfolders, or `.zip` or `.npz` file.
    files: image files that are read instead; `path` is then the glob pattern that they match.
    setting: name of the setting that contains `path`, for error messages.
    """

    path: Path
    files: tuple[str, ...] | None = None
    setting: str = "images"
    image_column: None = None
    label_column: None = None
    folder: None = None

    def __str__(self) -> str:
        return str(self.path)

    def locate(self) -> None:
        """Raise FileNotFoundError unless there are such files."""
        if self.files is None and not (self.path.is_dir() or self.path.is_file()):
            raise FileNotFoundError(f"`{self.setting}` must exist, got {terminal_text(str(self.path))}.")

    def splits(self) -> list[str]:
        return [SPLIT]

    def left_out(self, num_rows: int) -> Counter[str]:
        """Return the number of files that are no images, by reason."""
        return self._listed()[1]

    def identity(self, split: str) -> str:
        """Return a string that changes with the names, sizes and modification times of the files."""
        digest = hashlib.sha256(os.fsencode(self.path.absolute()))
        for file in self.image_files():
            status = os.stat(file)
            digest.update(json.dumps([file, status.st_size, status.st_mtime_ns]).encode())
        return digest.hexdigest()

    def layout(self, split: str) -> list[Any]:
        return ["samples in natural order"]

    def open(self, split: str, work_folder: Path) -> Rows:
        """Open the images, all with label 0.

        work_folder: folder into which an `.npz` file is unpacked.
        Raises ValueError if there are no images, or if an archive cannot be read.
        """
        images = self._open(work_folder)
        if not len(images):
            left_out = ", ".join(f"{counted(n, 'file')} ({reason})" for reason, n in self._listed()[1].items())
            raise ValueError(f"{self._given} must contain images, got {left_out or 'none'}.")
        return Rows(images, np.zeros(len(images), dtype=np.int64), ())

    def first_side(self) -> int:
        """Return the side length of the first image, or of another one if it is damaged.

        Raises ValueError unless the image is a square.
        """
        width, height = self.first_size()
        if width != height:
            raise ValueError(
                f"{self._given} must contain square images, got {width} x {height} pixels; preparation.resolution=SIDE "
                "with preparation.fit=resize crops and resizes them."
            )
        return width

    def first_size(self) -> tuple[int, int]:
        """Return width and height of the first image, or of another one if it is damaged.

        Raises ValueError if no image can be read.
        """
        self.locate()
        try:
            return samples_size(self.path) if self._is_array else self._first_size()
        except ValueError as error:
            raise ValueError(f"{self._given} cannot be read as images: {error}.") from None

    def _first_size(self) -> tuple[int, int]:
        images: UndecodedImages = (
            ZipImages(self.path, zip_names(self.path)) if self._is_zip else ImageFiles(self.image_files())
        )
        sizes = [*read_sizes(images, 1), *read_sizes(images, 100)] if len(images) else []
        if not sizes:
            raise ValueError("its image files cannot be decoded" if len(images) else "it has no image files")
        return int(sizes[0][0]), int(sizes[0][1])

    @property
    def _is_array(self) -> bool:
        return self.files is None and self.path.suffix.lower() == ".npz" and self.path.is_file()

    @property
    def _is_zip(self) -> bool:
        return self.files is None and self.path.is_file() and not self._is_array

    def image_files(self) -> list[str]:
        """Return the paths of the image files, or of the archive, in natural order."""
        return self._listed()[0]

    def _open(self, work_folder: Path) -> UndecodedImages:
        try:
            if self._is_array:
                target = work_folder / "images.uint8"
                return ArrayImages(target, unpack_samples(self.path, target))
            if self._is_zip:
                return ZipImages(self.path, zip_names(self.path))
        except ValueError as error:
            raise ValueError(f"{self._given} cannot be read as images: {error}.") from None
        return ImageFiles(self.image_files())

    @property
    def _given(self) -> str:
        return f"{self.setting}={terminal_text(str(self.path))}"

    def _listed(self) -> tuple[list[str], Counter[str]]:
        """Return the image files, or the archive, in natural order, and the number of left-out files by reason."""
        if self.files is not None:
            return sorted(self.files, key=natural_order), Counter()
        if self.path.is_file():
            return [str(self.path)], Counter()
        found, left_out = image_folders.list_image_files(self.path)
        names = sorted((file.path for file in found), key=natural_order)
        return [str(self.path.absolute() / name) for name in names], left_out


@dataclass(frozen=True)
class ZipImages:
    """Images that are members of a `.zip` archive, which is never unpacked."""

    path: Path
    names: Sequence[str]
    places: None = None

    def __len__(self) -> int:
        return len(self.names)

    def items(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        with open_regular(self.path) as opened, zipfile.ZipFile(opened) as archive:
            for name in self.names[start:stop]:
                yield {"bytes": _member(archive, name), "path": terminal_text(name)}


@dataclass(frozen=True)
class ArrayImages:
    """Images in a file of raw pixels.  shape: their shape, [N, H, W, C]."""

    path: Path
    shape: tuple[int, ...]
    places: None = None

    def __len__(self) -> int:
        return self.shape[0]

    def items(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yield each image as a PPM or PGM file, which consists of a header and the pixels."""
        _, height, width, channels = self.shape
        header = f"P{6 if channels == 3 else 5}\n{width} {height}\n255\n".encode()
        pixels = np.memmap(self.path, np.uint8, "r", shape=self.shape)
        for number in range(start, stop):
            yield {"bytes": header + pixels[number].tobytes(), "path": f"image {number} of arr_0"}


def natural_order(name: str) -> tuple[Any, ...]:
    """Return a sort key that orders the whole numbers in a path by value, folder by folder."""
    return tuple(tuple(_pieces(part)) for part in name.split("/")), name


def _pieces(text: str) -> Iterator[tuple[int, int, str]]:
    for number, piece in enumerate(re.split(r"([0-9]+)", text)):
        digits = piece.lstrip("0")
        yield (1, len(digits), digits) if number % 2 else (0, 0, piece)


def zip_names(path: Path) -> list[str]:
    """Return the names of the image files in a `.zip` archive, in natural order.

    Raises ValueError, with the reason as the message, for a file that is no archive.
    """
    try:
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except OSError as error:
        raise ValueError(error.strerror or "the archive is damaged") from None
    except Exception as error:  # damaged archives raise errors of any type
        raise ValueError(terminal_text(" ".join(str(error).split())[:150]) or type(error).__name__) from None
    return sorted(filter(_is_visible_image, names), key=natural_order)


def _is_visible_image(name: str) -> bool:
    *folders, file = name.split("/")
    is_hidden = file.startswith(".") or any(image_folders.is_system_folder(folder) for folder in folders)
    return not is_hidden and os.path.splitext(file)[1].lower() in EXTENSIONS


def _member(archive: zipfile.ZipFile, name: str) -> bytes | DamagedImageError:
    """Return the content of a member, or an error for one that is too large, encrypted or damaged."""
    try:
        if (size := archive.getinfo(name).file_size) > MAX_IMAGE_BYTES:
            return DamagedImageError(f"the file has {gigabytes(size)}, more than {gigabytes(MAX_IMAGE_BYTES)}")
        return archive.read(name)
    except Exception as error:  # damaged archives raise errors of any type
        return DamagedImageError(f"the member cannot be read: {' '.join(str(error).split())[:150].rstrip('.')}")

"""Arrays in `.npz` files that other people wrote: the header of an array is read and checked before its content."""

import math
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from diffusion_lab.data.table_checks import require_disk
from diffusion_lab.files.atomic import CANNOT_WRITE
from diffusion_lab.files.regular import open_regular
from diffusion_lab.reporting.text import terminal_text

SAMPLES = "arr_0"
"""Name of the array of images in the sample files of Dhariwal & Nichol (2021)."""


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array in an opened `.npy` file."""
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array has the version {version} of the format .npy, which must be (1, 0) or (2, 0)")
    shape, is_fortran, dtype = readers[version](file)
    if is_fortran and len(shape) > 2:
        raise ValueError("an array with more than two dimensions must be stored in C order, got Fortran order")
    return shape, dtype


def array_names(path: Path) -> set[str]:
    """Return the names of the arrays in a file without reading them; an empty set for a file that cannot be read."""
    try:
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
        return set()


def samples_size(path: Path) -> tuple[int, int]:
    """Return width and height of the images in an `.npz` file.  Raises the errors of `unpack_samples`."""
    with _opened_samples(path) as (_, shape):
        return shape[2], shape[1]


def unpack_samples(path: Path, target: Path) -> tuple[int, ...]:
    """Write the bytes of the images in an `.npz` file, uint8 [N, H, W, C], to the file `target`; return their shape.

    Raises ValueError, with the reason as the message, unless the file contains such images without damage.
    """
    with _opened_samples(path) as (file, shape):
        require_disk(math.prod(shape), target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as unpacked:
            shutil.copyfileobj(file, unpacked, 2**24)  # verifies the checksum at the end
    return shape


@contextmanager
def _opened_samples(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Yield the array of images, opened after its header, and its shape."""
    try:
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if SAMPLES not in names:
                raise ValueError(f"it must contain the array {SAMPLES}, got {', '.join(names[:5]) or 'no array'}")
            info = archive.getinfo(f"{SAMPLES}.npy")
            with archive.open(info) as file:
                shape, dtype = read_header(file)
                yield file, _image_shape(shape, dtype, info.file_size - file.tell())
    except OSError as error:
        if error.strerror is not None and error.errno in CANNOT_WRITE:
            raise
        raise ValueError(error.strerror or "the archive is damaged") from None
    except Exception as error:  # damaged archives raise errors of any type, from BadZipFile to zlib.error
        raise ValueError(
            terminal_text(" ".join(str(error).split())[:150].rstrip(".")) or type(error).__name__
        ) from None


def _image_shape(shape: tuple[int, ...], dtype: np.dtype[Any], num_bytes: int) -> tuple[int, ...]:
    """Return the shape [N, H, W, C] of images.  Raises ValueError for other arrays.  num_bytes: their stored bytes."""
    full = (*shape, 1) if len(shape) == 3 else shape
    if dtype != np.uint8:
        raise ValueError(f"{SAMPLES} must be uint8, got {dtype}")
    if len(full) != 4 or full[-1] not in (1, 3) or min(full[1:]) < 1:
        accepted = "[N, H, W, 3], [N, H, W, 1] or [N, H, W]"
        raise ValueError(f"{SAMPLES} must have the shape {accepted}, got {list(shape)[:10]}")
    if (expected := math.prod(full)) != num_bytes:
        raise ValueError(f"{SAMPLES} must have the {expected:,} bytes of its shape, got {num_bytes:,}")
    return full

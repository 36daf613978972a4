"""Reading of feature statistics files (`.npz`), whose content is data: nothing in them is executed.

The header of an array can state any shape, and a compressed array can have any size. The header is therefore read
first, and an array is read only if it has the expected kind and a size that fits into the memory.
"""

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from diffusion_lab.data.npz_arrays import read_header
from diffusion_lab.files.regular import gigabytes, memory_budget, open_regular
from diffusion_lab.reporting.text import terminal_text

NUM_DIMENSIONS = {"mu": 1, "sigma": 2, "mu_s": 1, "sigma_s": 2, "rows": 2, "feats": 2, "count": 0, "about": 0}
"""Arrays of a statistics file, and their numbers of dimensions. clean-fid stores the features of images as feats."""
ABOUT = {"features": str, "output": str, "weights_sha256": str, "split": str, "fingerprint": str, "size": int}
"""Keys of the JSON text `about`, which identifies the images and the feature network, with the type of each value."""


def read_statistics(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the arrays of a statistics file that are known by name, and the names of all its arrays.

    Raises ValueError for a file that cannot be read reliably, with the reason as the message.
    """
    try:
        # The file is opened here, because a library does not close a file if reading the archive fails.
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            arrays: dict[str, np.ndarray] = {}
            for name in (name for name in NUM_DIMENSIONS if name in members):
                arrays[name] = _read(archive, members[name], name, sum(array.nbytes for array in arrays.values()))
    except OSError as error:
        raise ValueError(error.strerror or "the archive is damaged") from None
    except Exception as error:  # damaged archives raise errors of any type, from BadZipFile to zlib.error
        raise ValueError(terminal_text(" ".join(str(error).split())[:150]) or type(error).__name__) from None
    arrays = {"rows" if name == "feats" else name: array for name, array in arrays.items()}
    return arrays, [terminal_text(name[:50]) for name in list(members)[:20] if name != "arr_0"]


def read_about(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the origin of the statistics; {} if a file does not contain it.  Raises ValueError for an invalid one."""
    if "about" not in arrays:
        return {}
    try:
        about = json.loads(str(arrays["about"]))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not all(type(about.get(key)) is kind for key, kind in ABOUT.items()):
        raise ValueError(f"its text about must be a JSON object with {', '.join(ABOUT)}")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,50}", about["split"]):
        raise ValueError("the name of the split must consist of letters, digits and ._-")
    return about | {"rows": int(about["rows"]) if isinstance(about.get("rows"), int) else 0}


def _read(archive: zipfile.ZipFile, member: str, name: str, num_read: int) -> np.ndarray:
    """Return an array of an archive in the byte order of this machine.  num_read: bytes of the arrays read before."""
    with archive.open(member) as file:
        shape, dtype = read_header(file)
        _require_expected(name, shape, dtype)
        num_bytes = math.prod(shape) * dtype.itemsize
        stored = archive.getinfo(member).file_size - file.tell()
        if num_bytes > memory_budget() - num_read:
            limit = gigabytes(memory_budget() - num_read)
            raise ValueError(f"{name} must have at most {limit}, got {gigabytes(num_bytes)}")
        if num_bytes != stored:
            raise ValueError(f"{name} must have the {num_bytes:,} bytes of its shape, got {stored:,}")
    with archive.open(member) as file:
        array = npy.read_array(file, allow_pickle=False)
    return np.asarray(array, dtype=array.dtype.newbyteorder("="))  # torch reads no other byte order


def _require_expected(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    kinds = {"about": "U", "count": "iu"}.get(name, "fiu")
    if dtype.kind not in kinds or (dtype.kind == "f" and dtype.itemsize > 8):  # torch has no longer floats
        raise ValueError(f"{name} must contain {'text' if name == 'about' else 'numbers'}, got {dtype}")
    # `FileReference` reports the dimensions of mean and covariance together
    if len(shape) > 2 or any(side < 0 for side in shape) or (name in ("count", "about", "rows", "feats") and (
        len(shape) != NUM_DIMENSIONS[name]
    )):  # fmt: skip
        raise ValueError(f"{name} must have {NUM_DIMENSIONS[name]} dimensions, got the shape {list(shape)[:10]}")

"""Reading of the files in which torch-fidelity caches statistics and features (`.pt`), without executing their content.

torch-fidelity pickles NumPy arrays. `weights_only=True` refuses the functions that such a pickle calls, so they are
replaced by functions that only build an array of float32 or float64 numbers.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_lab.checkpoint_files import require_stored
from diffusion_lab.files.regular import gigabytes, memory_budget, open_regular
from diffusion_lab.reporting.text import terminal_text

SUFFIXES = (".pt", ".pth")


def read_torch_statistics(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return mu and sigma, or rows (features of single images), and the names of all entries of the file.

    Raises ValueError for a file that cannot be read reliably, with the reason as the message.
    """
    try:
        with open_regular(path) as opened:
            num_bytes = os.fstat(opened.fileno()).st_size
            if num_bytes > memory_budget():
                raise ValueError(f"the file must have at most {gigabytes(memory_budget())}, got {gigabytes(num_bytes)}")
            require_stored(path)
            with torch.serialization.safe_globals(_ARRAYS):
                content = torch.load(opened, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(error.strerror or "the file is damaged") from None
    except Exception as error:  # damaged or hostile files raise errors of any type
        raise ValueError(_reason(error)) from None
    entries = content if isinstance(content, dict) else {"rows": content}
    known = {name: entries[name] for name in ("mu", "sigma", "rows") if name in entries}
    arrays = {name: _numbers(name, value, num_bytes) for name, value in known.items()}
    return arrays, [terminal_text(str(name)[:50]) for name in list(entries)[:20]]


def _numbers(name: str, value: Any, num_bytes: int) -> np.ndarray:
    """Return an entry as an array.  Raises ValueError unless it contains numbers.  num_bytes: size of the file."""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        value = value.detach().float().numpy() if value.dtype != torch.float64 else value.detach().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise ValueError(f"{name} must contain numbers, got {type(value).__name__}")
    if value.nbytes > num_bytes:
        raise ValueError(f"{name} states {gigabytes(value.nbytes)}, and the file has {gigabytes(num_bytes)}")
    if name == "rows" and value.ndim != 2:
        raise ValueError(f"rows must have 2 dimensions, got the shape {list(value.shape)[:10]}")
    return value


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "weights_only" in text or "Unsupported" in text:
        return "it is not a dict or a tensor of numbers, and other content of a pickle is not executed"
    return terminal_text(text[:150].rstrip(".")) or type(error).__name__


def _empty_array(*arguments: Any) -> np.ndarray:
    """Replace `numpy._core.multiarray._reconstruct`, whose result `__setstate__` fills."""
    return np.empty(0, np.float32)


def _float_type(name: Any, *arguments: Any) -> np.dtype[Any]:
    """Replace `numpy.dtype`."""
    if name not in ("f4", "f8"):
        raise ValueError(f"the arrays must be float32 or float64, got {str(name)[:20]}")
    return np.dtype(np.float32 if name == "f4" else np.float64)


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Replace `_codecs.encode`, which protocol 2 calls for bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes must be encoded as latin1, got {str(encoding)[:20]}")
    return str(text).encode("latin1")


_ARRAYS: list[Any] = [
    np.ndarray,
    type(np.dtype("f4")),
    type(np.dtype("f8")),
    (_empty_array, "numpy.core.multiarray._reconstruct"),
    (_empty_array, "numpy._core.multiarray._reconstruct"),
    (_float_type, "numpy.dtype"),
    (_latin1, "_codecs.encode"),
]

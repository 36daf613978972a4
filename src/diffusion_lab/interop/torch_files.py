"""Reading of foreign files as data: no code in them is run, and they cannot take more memory than their own size."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.files.regular import open_regular

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Start of a file that torch.save has written before version 1.6: a pickle of its magic number."""


def is_torch_file(file: Path) -> bool:
    """Return whether torch.save has written a file.  Raises UserError if it cannot be opened."""
    try:
        with open_regular(file) as opened:
            return opened.read(len(LEGACY)) == LEGACY or zipfile.is_zipfile(opened)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}).") from error


def is_pickle(file: Path) -> bool:
    """Return whether a file starts as a pickle of protocol 2 to 5."""
    with open_regular(file) as opened:
        start = opened.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def read_torch_file(file: Path) -> Any:
    """Return the content of a file that torch.save has written, on the CPU.

    Raises UserError if the file is damaged, or contains anything but tensors and plain values.
    """
    try:
        with open_regular(file) as opened:
            return load(opened)
    except Exception as error:  # torch, pickle and zipfile raise errors of many types for damaged files
        reason = " ".join(str(error).split())
        if "weights_only" in reason.lower() or "Unsupported" in reason:
            reason = "it contains objects other than tensors and plain values, which could run code"
        raise UserError(f"{file} cannot be read as a checkpoint of PyTorch ({reason[:200] or type(error)}).") from error


def load(opened: BinaryIO) -> Any:
    """Return the content of an open file of torch.save.  Raises errors of many types."""
    if zipfile.is_zipfile(opened):
        _require_sound(opened)
    opened.seek(0)
    return torch.load(opened, map_location="cpu", weights_only=True)


def load_bytes(content: bytes) -> Any:
    """Return the content of bytes that torch.save has written, which another file contains."""
    return load(io.BytesIO(content))


def _require_sound(opened: BinaryIO) -> None:
    """Raise ValueError for an archive with compressed records, which can take any memory, or with wrong checksums."""
    with zipfile.ZipFile(opened) as archive:
        packed = [record.filename for record in archive.infolist() if record.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"its records must not be compressed, got {packed[0][:80]!r}")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged[:80]!r} is wrong")


def state_dict_of(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the weights in a checkpoint: averages if it has them, without the prefix of distributed training.

    Accepted are a state_dict, a dict that contains one (the keys ema, state_dict or model), and the list of
    ermongroup/ddim (network, optimizer, epoch, step and averages).
    Raises UserError for other content, and for tensors that are larger than the memory that they use.
    """
    found = content
    if isinstance(content, (list, tuple)):
        found = _last_state(content)
    for key in ("ema", "state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not found or not all(_is_named_tensor(*item) for item in found.items()):
        raise UserError(f"{file} must contain a state_dict (tensors by name), got {_described(found)}.")
    prefix = "module." if all(name.startswith("module.") for name in found) else ""
    return {name.removeprefix(prefix): require_dense(tensor, name, file) for name, tensor in found.items()}


def _last_state(content: Any) -> Any:
    states = [part for part in content if isinstance(part, Mapping) and part and all(map(_is_tensor, part.values()))]
    return states[-1] if states else content


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def require_dense(tensor: Tensor, name: str, file: Path) -> Tensor:
    """Return a tensor without its gradient.

    Raises UserError for one that repeats its memory, such as a view with strides of 0: a small file could otherwise
    take any memory.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UserError(f"{file}: {name[:80]} must be a dense tensor, got {tensor.layout} on {tensor.device.type}.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{file}: {name[:80]} must be as large as its memory, got the shape {list(tensor.shape)}.")
    return tensor.detach()


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(str(key)[:40] for key in list(value)[:4]) or '(none)'}"
    return f"a {type(value).__name__}"

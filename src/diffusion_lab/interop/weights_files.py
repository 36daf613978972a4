"""Weights files of other code, and the comparison of their tensors with those of a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab import checkpoint_files
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import set_default_mode

INSTALL = "pip install 'diffusion-lab-framework[export]' (in a clone: pip install -e '.[export]') installs it."


def safetensors_torch() -> Any:
    """Return the module safetensors.torch.  Raises UserError if the package is not installed."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(f"files in the format of safetensors require the package safetensors; {INSTALL}") from error
    return safetensors.torch


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file: *.safetensors, or a file of torch.save with tensors only.

    Raises UserError for a damaged file, and for a file of torch.save that contains anything but tensors by name.
    """
    if path.suffix == ".safetensors":
        library = safetensors_torch()
        try:
            tensors: dict[str, Tensor] = library.load_file(path)
        except Exception as error:  # SafetensorError derives from Exception
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from error
        return tensors
    try:
        content = checkpoint_files.read(path)
    except (checkpoint_files.DamagedCheckpointError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    others = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise UserError(f"{path} must contain tensors by name only, got {str(others[0])[:80]!r}.")
    return content


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors to a *.safetensors file.  metadata: texts in the header of the file."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors_torch().save_file(contiguous, path, metadata=dict(metadata))
    set_default_mode(path)  # safetensors writes files that only their owner may read


def require_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError unless `found` has exactly the names and shapes of `expected`.

    found: tensors of the file `path`, by the names of the file.  expected: tensors of any device, by the same names.
    """
    differences = {
        "missing": [name for name in expected if name not in found],
        "surplus": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
            for name in expected
            if name in found and found[name].shape != expected[name].shape
        ],
    }
    if any(differences.values()):
        listed = "; ".join(f"{kind}: {_first(names)}" for kind, names in differences.items() if names)
        raise UserError(f"{path} must contain the tensors of the network that its config describes ({listed}).")
    if odd := [name for name, tensor in found.items() if not tensor.is_floating_point()]:
        raise UserError(f"{path} must contain floating-point weights, got {odd[0]} with {found[odd[0]].dtype}.")


def _first(names: Sequence[str]) -> str:
    return ", ".join(name[:100] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in float32, for networks that were saved in half precision."""
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}

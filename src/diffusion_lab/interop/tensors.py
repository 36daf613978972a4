"""The tensors of a foreign checkpoint, and their conversion to the state_dict of a network of this package.

Each tensor of the file must be used, and each tensor of the network must be given: nothing is loaded in part.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop.imported import network_on_meta

Transform = Callable[..., Tensor]


@dataclass(frozen=True)
class Part:
    """Tensors of the file from which one tensor of the network is computed.

    names: names in the file.  transform: function of these tensors; None returns the only one unchanged.
    """

    names: tuple[str, ...]
    transform: Transform | None = None


Plan = dict[str, Part]
"""How each tensor of a network is computed: name in the state_dict of the network -> its part of the file."""


class ForeignTensors(Mapping[str, Tensor]):
    """The tensors of a foreign checkpoint by name.  A missing name raises UserError.

    file: path of the checkpoint, for messages.  layout: name of the layout that the file should have, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], file: Path, layout: str) -> None:
        self.tensors, self.file, self.layout = dict(tensors), file, layout

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            self.refuse("has no", [name])
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def sizes(self, name: str, num_dimensions: int) -> tuple[int, ...]:
        """Return the shape of a tensor.  Raises UserError unless it has this number of dimensions."""
        shape = tuple(self[name].shape)
        if len(shape) != num_dimensions or 0 in shape:
            raise UserError(f"{self.file}: {name} must have {num_dimensions} dimensions, got the shape {list(shape)}.")
        return shape

    def refuse(self, what: str, names: list[str]) -> None:
        """Raise UserError for names that are missing or surplus."""
        shown = ", ".join(name[:80] for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(f"{self.file} must have the tensors of {self.layout}, but it {what} {shown}{more}.")


def converted(plan: Plan, tensors: ForeignTensors, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state_dict of the network with these constructor settings, float32.

    Raises UserError that names all missing, surplus, unfit and non-finite tensors of the kind found first.
    """
    used = {name for part in plan.values() for name in part.names}
    if missing := [name for part in plan.values() for name in part.names if name not in tensors]:
        tensors.refuse("has no", missing)
    if surplus := [name for name in tensors if name not in used]:
        tensors.refuse("also has", surplus)
    expected = {k: tuple(v.shape) for k, v in network_on_meta(settings, tensors.file).state_dict().items()}
    _require_same_names(plan, expected, tensors)
    weights = {}
    for own, part in plan.items():
        values = [tensors[name] for name in part.names]
        weights[own] = _one(part, values, expected[own], tensors.file)
    return weights


def _require_same_names(plan: Plan, expected: Mapping[str, Any], tensors: ForeignTensors) -> None:
    """Raise UserError unless the plan gives each tensor of the network, which a file with other layers does not."""
    if others := sorted(expected.keys() ^ plan.keys()):
        names = [part.names[0] for own, part in plan.items() if own in others] or others
        tensors.refuse("has other layers at", names)


def _one(part: Part, values: list[Tensor], shape: tuple[int, ...], file: Path) -> Tensor:
    """Return a tensor of the network.  Raises UserError if the tensors of the file do not result in its shape."""
    for name, value in zip(part.names, values, strict=True):
        if not value.is_floating_point() or value.is_sparse:
            raise UserError(f"{file}: {name} must be a dense tensor of floats, got {value.dtype} ({value.layout}).")
        if value.device.type != "meta" and not torch.isfinite(value).all():
            raise UserError(f"{file}: {name} must have finite values only, got values that are not.")
    try:
        result = part.transform(*values) if part.transform else values[0]
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise UserError(f"{file}: {' and '.join(part.names)} must fit the other tensors, got {shapes}.") from error
    if tuple(result.shape) != shape:
        raise UserError(
            f"{file}: {' and '.join(part.names)} must result in the shape {list(shape)} to fit the other tensors, got "
            f"{list(result.shape)}."
        )
    # The tensor is copied: a view would keep, and save, the complete storage of the file.
    return result.detach().to(torch.float32).contiguous().clone()

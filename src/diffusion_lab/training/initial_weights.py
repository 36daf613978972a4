"""Training that starts from the weights of another network: tensors that fit are copied, the others are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.ema.averages import RAW

AVERAGES = "ema.networks."
"""Start of the names of the averaged weights in the state_dict of a `DiffusionModule`."""

CLASS_DIMENSIONS = {
    "label_embedding.weight": 0,
    "time_embedding.label.weight": 1,
    "pool.out.weight": 0,
    "pool.out.bias": 0,
}
"""Name of a parameter of this package's networks that has one row per class -> dimension of these rows."""


@dataclass(frozen=True)
class Classes:
    """Classes of a network whose names are known.

    names: name of each class that the network was, or will be, trained on -> its number.
    null: number of the null label; None if the network has none.
    """

    names: Mapping[str, int]
    null: int | None = None


@dataclass
class Fit:
    """Names of the tensors that were taken from other weights.

    made_anew: tensors of the network that other weights do not have in this shape.  not_used: the reverse.
    rows: names of the classes whose rows were taken, for a table that was not taken as a whole; see `take`.
    """

    taken: list[str] = field(default_factory=list)
    made_anew: list[str] = field(default_factory=list)
    not_used: list[str] = field(default_factory=list)
    rows: dict[str, list[str]] = field(default_factory=dict)


def network_weights(state: Mapping[str, Any], name: str | None) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a network in the state_dict of its module, and their name.

    name: name of an average, or "raw" for the trained weights; None selects the average that samples, which is the
        first one, or the trained weights if there is none.
    Raises ValueError if there are no weights of this name.
    """
    averages = dict.fromkeys(key.split(".")[2] for key in state if key.startswith(AVERAGES) and key.count(".") > 2)
    accepted = [*averages, RAW]
    chosen = accepted[0] if name is None else name
    if chosen not in accepted:
        raise ValueError(f"`init_weights` must be {' or '.join(accepted)}, got {name}.")
    prefix = "network." if chosen == RAW else f"{AVERAGES}{chosen}."
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}, chosen


@torch.no_grad()
def take(
    network: nn.Module, weights: Mapping[str, Tensor], own: Classes | None = None, other: Classes | None = None
) -> Fit:
    """Copy all weights that fit, by name and shape, into a network.

    own, other: classes of the network and of the weights. If both are known and differ, the tables with one row per
        class are not taken as a whole: only the rows of classes with the same name are, and that of the null label.
    Raises ValueError for weights that are not finite.
    """
    fit, tensors = Fit(), {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
    by_name = own is not None and other is not None and own != other
    for name, tensor in tensors.items():
        given = weights.get(name)
        if by_name and given is not None and name in CLASS_DIMENSIONS and own is not None and other is not None:
            fit.made_anew.append(name)
            fit.rows[name] = _take_rows(tensor, given, CLASS_DIMENSIONS[name], own, other)
        elif given is not None and given.shape == tensor.shape:
            _require_finite(name, given)
            tensor.copy_(given)
            fit.taken.append(name)
        else:
            fit.made_anew.append(name)
    fit.not_used = [name for name in weights if name not in {*fit.taken, *fit.rows}]
    return fit


def _take_rows(tensor: Tensor, given: Tensor, dimension: int, own: Classes, other: Classes) -> list[str]:
    """Copy the rows of classes with the same name, and return these names."""
    rows, others = tensor.movedim(dimension, 0), given.movedim(dimension, 0)
    if rows.shape[1:] != others.shape[1:]:
        return []
    _require_finite("the table of the classes", given)
    names = [name for name in own.names if name in other.names]
    pairs = [(own.names[name], other.names[name]) for name in names]
    if own.null is not None and other.null is not None:
        pairs.append((own.null, other.null))
        names.append("(the null label)")
    kept = [k for k, (row, source) in enumerate(pairs) if row < len(rows) and source < len(others)]
    for k in kept:
        rows[pairs[k][0]] = others[pairs[k][1]]
    return [names[k] for k in kept]


def _require_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"the weights of `init` must be finite, got {name} with a value that is not.")


def untrained(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Return those of the parameters with these names that are not trained, by their names without adapters."""
    parameters = {name.replace(".base_layer.", "."): p for name, p in network.named_parameters()}
    return [name for name in names if name in parameters and not parameters[name].requires_grad]

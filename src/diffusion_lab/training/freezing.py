"""Freezing of parameters: they keep their values in training, and the optimizer does not receive them."""

import fnmatch
from collections.abc import Iterable, Sequence

from torch import nn


def freeze(network: nn.Module, globs: Sequence[str]) -> int:
    """Set requires_grad to False for all parameters whose names match one of the glob patterns.

    Returns the number of these parameters.
    Raises ValueError for a pattern that matches no name, and if no parameter remains to be trained.
    """
    names = [name for name, _ in network.named_parameters()]
    frozen = set(matching(names, globs, "freeze"))
    if globs and len(frozen) == len(names):
        raise ValueError(f"`freeze` must leave parameters to train, got {', '.join(globs)}, which matches all of them.")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)
    return len(frozen)


def matching(names: Sequence[str], globs: Iterable[str], setting: str) -> list[str]:
    """Return the names that match one of the glob patterns, in their order.

    setting: name of the setting, for the error message.  Raises ValueError for a pattern that matches none of `names`.
    """
    found: set[str] = set()
    for glob in globs:
        matches = fnmatch.filter(names, glob)
        if not matches:
            raise ValueError(f"`{setting}` must match {_examples(names)}, got {glob}, which matches none.")
        found.update(matches)
    return [name for name in names if name in found]


def _examples(names: Sequence[str]) -> str:
    """Return a text with one name of each part of a network, at most six."""
    first = {name.partition(".")[0]: name for name in reversed(names)}
    chosen = [name for name in names if name in first.values()][:6]
    return f"names such as {', '.join(chosen)}"

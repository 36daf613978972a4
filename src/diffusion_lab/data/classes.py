"""Names and numbers of classes, and the forms in which a user gives the classes of generated images."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.randomness import Purpose, stream
from diffusion_lab.reporting.text import terminal_text

RANDOM = "random"
"""Value of `label` that assigns a random class to each seed."""

LabelChoice = int | str | Sequence[int | str] | Tensor
"""The number or name of the class of all images, RANDOM, or a list of classes, which is repeated for more images."""

LONGEST_NAME = 80
"""Largest number of characters of a name in a list of classes; a longer name loses its middle."""

MAX_SHOWN = 12
"""Largest number of classes that are all listed."""


def as_label(
    label: LabelChoice | None,
    num_classes: int,
    names: Sequence[str] = (),
    default: str = "None",
    trained: Sequence[int] = (),
) -> int | str | list[int] | None:
    """Return `label` with numbers in place of names: a number, a list of several numbers, RANDOM, or None.

    num_classes: number of classes of the guided network; 0 without classes.  names: names of the classes, if known.
    default: word for None in the error message, such as null in a config.
    trained: classes that the network was trained on; empty if it was trained on all of them.
    Raises ValueError unless `label` consists of classes that the network was trained on.
    """
    if label is None:
        return None
    if not num_classes:
        raise ValueError(f"`label` must be {default} for a network that was trained without classes, got {label}.")
    if isinstance(label, str) and label == RANDOM:
        return RANDOM
    numbers = [number_of(item, names) if isinstance(item, str) else item for item in _listed(label)]
    if not numbers or any(not isinstance(k, int) or isinstance(k, bool) or not 0 <= k < num_classes for k in numbers):
        raise ValueError(
            f"`label` must be {default}, {RANDOM}, in 0..{num_classes - 1} or a list of such numbers, got {label}."
        )
    if trained and not set(numbers) <= set(trained):
        known = numbering(names, trained) if names else ", ".join(map(str, trained))
        raise ValueError(
            f"`label` must be {default}, {RANDOM}, or among the classes that the network was trained on ({known}), got "
            f"{label}."
        )
    return numbers if len(numbers) > 1 else numbers[0]


def labels_of(
    seeds: Sequence[int], label: int | str | list[int] | None, num_classes: int, trained: Sequence[int] = ()
) -> Tensor:
    """Return the class of each seed, int64 [B]; of a list of n classes, seed k has class k modulo n.

    label: result of `as_label`; None is the list of all classes that the network was trained on.
    trained: classes that the network was trained on; empty if it was trained on all of them.
    """
    classes = trained or range(num_classes)
    if label == RANDOM:
        return torch.tensor([classes[int(stream(k, Purpose.SAMPLED_LABEL).integers(len(classes)))] for k in seeds])
    chosen = classes if label is None else _listed(label)
    return torch.tensor([chosen[seed % len(chosen)] for seed in seeds])


def has_names(label: Any) -> bool:
    """Return whether `label` contains the name of a class, or a number that is written as text."""
    return label != RANDOM and any(isinstance(item, str) for item in _listed(label))


def _listed(label: Any) -> list[Any]:
    given = label.tolist() if hasattr(label, "tolist") else label  # a tensor or an array
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def numbering(names: Sequence[str], numbers: Sequence[int] = ()) -> str:
    """Return the names with their numbers; of a long list, the first names and the last.

    numbers: numbers of the classes that are listed; empty for all classes.
    """
    numbered = [
        f"{number} {terminal_text(name, LONGEST_NAME)}"
        for number, name in enumerate(names)
        if not numbers or number in numbers
    ]
    shown = numbered if len(numbered) <= MAX_SHOWN else [*numbered[: MAX_SHOWN - 2], "...", numbered[-1]]
    return ", ".join(shown)


def number_of(name: str, names: Sequence[str]) -> int:
    """Return the number of the class with a name, ignoring case.  Raises ValueError if no class has the name."""
    for same in (str, _simplified, _first_word):
        numbers = [number for number, other in enumerate(names) if same(other) == same(name)]
        if len(numbers) == 1:
            return numbers[0]
    if name.isdecimal():
        return int(name)
    if not names:
        raise ValueError(
            f"`label` must be the number of a class, or a list of numbers, got {name}: the images have no class names."
        )
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; perhaps you mean {terminal_text(close[0], LONGEST_NAME)}" if close else ""
    raise ValueError(f"`label` must be the name or the number of a class ({numbering(names)}), got {name}{hint}.")


def _simplified(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def _first_word(name: str) -> str:
    """Return the first of several names of a class, such as tench of "tench, Tinca tinca"."""
    return _simplified(name.partition(",")[0])

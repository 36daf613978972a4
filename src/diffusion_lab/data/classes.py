"""Names and numbers of classes."""

from collections.abc import Sequence
from difflib import get_close_matches

MAX_SHOWN = 12
"""Largest number of classes that are all listed."""


def numbering(names: Sequence[str]) -> str:
    """Return the names with their numbers; of a long list, the first names and the last."""
    numbered = [f"{number} {name}" for number, name in enumerate(names)]
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
    hint = f"; perhaps you mean {close[0]}" if close else ""
    raise ValueError(f"`label` must be the name or the number of a class ({numbering(names)}), got {name}{hint}.")


def _simplified(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def _first_word(name: str) -> str:
    """Return the first of several names of a class, such as tench of "tench, Tinca tinca"."""
    return _simplified(name.partition(",")[0])

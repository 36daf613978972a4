"""JSON configs that other libraries wrote: checked values of their settings, and errors that name a setting."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.errors import UserError
from diffusion_lab.files.regular import read_regular

LARGEST = 10**7
"""Size in bytes of the largest JSON file that is read. A list of 4,000 variances takes 100 kB."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.  Raises UserError unless the file contains an object."""
    try:
        content = json.loads(read_regular(path, LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must contain a JSON object, got a {type(content).__name__}.")
    return content


class ForeignConfig:
    """The settings of an object of another library.

    content: settings in the file.  defaults: defaults of the class of the object, for settings that the file lacks.
    path: file, for error messages.  unused: settings of `content` without a default here; the library ignores them.
    """

    def __init__(self, content: Mapping[str, Any], defaults: Mapping[str, Any], path: Path) -> None:
        self.path, self._values = path, {**defaults, **{k: v for k, v in content.items() if k in defaults}}
        self.unused = [key for key in content if key not in defaults and not key.startswith("_")]

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def refuse(self, key: str, accepted: str) -> UserError:
        """Return the error for a setting that has no counterpart.  accepted: values that have a counterpart."""
        return UserError(f"`{key}` must be {accepted} in {self.path}, got {str(self[key])[:100]}.")

    def require(self, key: str, *accepted: Any) -> Any:
        """Return a value.  Raises UserError unless it is one of the accepted values."""
        value = self[key]
        if not any(type(value) is type(each) and value == each for each in accepted):
            raise self.refuse(key, " or ".join(map(str, accepted)))
        return value

    def flag(self, key: str) -> bool:
        return bool(self.require(key, True, False))

    def whole(self, key: str, least: int = 1) -> int:
        """Return a whole number.  Raises UserError unless it is one of at least `least`."""
        value = self[key]
        if type(value) is not int or not least <= value < 2**31:
            raise self.refuse(key, f"a whole number of at least {least}")
        return value

    def number(self, key: str) -> float:
        """Return a finite number.  Raises UserError for any other value."""
        value = self[key]
        if type(value) not in (int, float) or not abs(value) < 1e300:
            raise self.refuse(key, "a number")
        return float(value)

    def sequence(self, key: str, kind: type) -> list[Any]:
        """Return a list.  Raises UserError unless all its elements are of the type `kind`, and if it is empty."""
        value = self[key]
        if not isinstance(value, list) or not value or any(type(each) is not kind for each in value):
            raise self.refuse(key, f"a list of {kind.__name__}")
        return value

    def resolution(self, key: str) -> int:
        """Return the side length of square images.  Raises UserError for other images."""
        value = self[key]
        sides = set(value) if isinstance(value, list) else {value}
        side = sides.pop() if len(sides) == 1 else None
        if type(side) is not int or not 1 <= side <= 2**14:
            raise self.refuse(key, "the side length of square images")
        return side

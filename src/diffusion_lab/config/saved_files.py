"""Reading of the files in a run folder, which another person may have written: they contain plain values only."""

import copy
import csv
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_lab.config.plain_yaml import NotPlainError, load_yaml
from diffusion_lab.errors import UserError
from diffusion_lab.files.regular import read_regular

LARGEST = 2**21
"""Size in bytes of the largest YAML file that is read. The configs of this package have about 10 kB."""

LARGEST_JSON = 10**8
"""Size in bytes of the largest JSON file that is read."""


def read_saved(path: Path, kind: type, *, interpolations: bool = False) -> Any:
    """Return the content of a YAML file, a dict or a list.

    kind: expected type of the content.  interpolations: whether texts may contain ${NAME}; they are not resolved.
    Raises UserError if the file cannot be read, or if it contains anything but plain values.
    """
    try:
        content: Any = copy.deepcopy(_values(read_regular(path, LARGEST).decode()))
    except NotPlainError as error:
        raise UserError(f"{path} must contain plain values only, as a run writes them, but it {error}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    content = kind() if content is None else content
    if type(content) is not kind:
        raise UserError(f"{path} must contain a {kind.__name__}, as a run writes it, got {type(content).__name__}.")
    if not interpolations and (found := next(_interpolations(content, ""), None)):
        raise UserError(f"{path} must contain plain values only, got {found[1]!r} at {found[0]}.")
    return content


def read_saved_json(path: Path, kind: type) -> Any:
    """Return the content of a JSON file, a dict or a list; empty if there is no file.

    kind: expected type of the content.  Raises UserError if the file cannot be read or has other content.
    """
    if not path.is_file():
        return kind()
    with reading(path):
        content: Any = json.loads(read_regular(path, LARGEST_JSON))
        if not isinstance(content, kind):
            raise ValueError(f"it contains a {type(content).__name__}, not a {kind.__name__}")
    return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise UserError for the errors of a block that reads a file, or files in a folder, with unexpected content."""
    try:
        yield
    except UserError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
        csv.Error,
    ) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path} cannot be read as this package writes it ({reason}).") from error


@functools.lru_cache(maxsize=8)
def _values(text: str) -> Any:
    """Return the values of a YAML text.  Cached, because a command reads the config of a run several times."""
    return load_yaml(text)


def _interpolations(node: Any, path: str) -> Any:
    """Yield the path and the value of each text with an interpolation."""
    if isinstance(node, (dict, list)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _interpolations(child, f"{path}.{key}".lstrip("."))
    elif isinstance(node, str) and "${" in node:
        yield path, node

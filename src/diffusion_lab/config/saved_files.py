"""Reading of the files in a run folder, which another person may have written: they contain plain values only."""

import copy
import csv
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.errors import UserError
from diffusion_lab.files.regular import MAX_DIGITS, is_long_number, read_regular

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
        text = read_regular(path, LARGEST).decode()
        if problem := _problem(text):
            raise UserError(f"{path} must contain plain values only, as a run writes them, but it {problem}.")
        content: Any = copy.deepcopy(_values(text)) if text.strip() else kind()
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from error
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
    return OmegaConf.to_container(OmegaConf.create(text))


@functools.lru_cache(maxsize=8)
def _problem(text: str) -> str | None:
    """Return what a text contains that could run code or need much memory; None if there is nothing."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            return f"repeats the node {event.anchor} by an alias"
        if is_long_number(getattr(event, "value", "")):
            return f"contains a number of more than {MAX_DIGITS} digits"
        if (tag := getattr(event, "tag", None)) is not None:
            return f"contains the tag {tag}"
    return None


def _interpolations(node: Any, path: str) -> Any:
    """Yield the path and the value of each text with an interpolation."""
    if isinstance(node, (dict, list)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _interpolations(child, f"{path}.{key}".lstrip("."))
    elif isinstance(node, str) and "${" in node:
        yield path, node

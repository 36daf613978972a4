"""YAML texts that other people wrote: read without running code, in little time and memory."""

import re
from collections.abc import Iterable
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf._utils import get_yaml_loader

from diffusion_lab.files.regular import MAX_DIGITS, is_long_number

MAX_LEVELS = 100
"""Largest number of nested lists and dicts. The C library crashes at about 30,000."""
MAX_EVENTS = 200_000
"""Largest number of values and of starts and ends of lists and dicts, which take seconds."""
MAX_ESCAPED = 2**16
"""Largest number of characters of a text that only PyYAML can read, in Python."""


class NotPlainError(ValueError):
    """Error for a YAML text that could run code, or that takes much time or memory."""


def load_yaml(text: str) -> Any:
    """Return the values of a YAML text, as OmegaConf reads them: 1e-3 is a number, and a repeated key is an error.

    Raises NotPlainError with a phrase such as "contains the tag !x", and ValueError for a text that is not YAML.
    """
    try:
        try:
            return _load(text, _FastLoader)
        except yaml.YAMLError as error:
            # PyYAML writes parts of file names that are not text in a form that it alone reads.
            if "Unicode character escape" not in str(error) or len(text) > MAX_ESCAPED:
                raise
            return _load(text, _Loader)
    except NotPlainError:
        raise
    except (yaml.YAMLError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _load(text: str, loader: type) -> Any:
    if re.search("^%", text, re.MULTILINE):  # the time to read directives grows with the square of their number
        raise NotPlainError("has a line that begins with %")
    if problem := _problem(yaml.parse(text, Loader=loader)):
        raise NotPlainError(problem)
    return yaml.load(text, Loader=loader)


def _problem(events: Iterable[yaml.Event]) -> str | None:
    level = 0
    for number, event in enumerate(events):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MAX_LEVELS:
            return f"contains more than {MAX_LEVELS} nested lists and dicts"
        if number > MAX_EVENTS:
            return f"contains more than {MAX_EVENTS:,} values"
        if isinstance(event, yaml.AliasEvent):
            return f"repeats the node {event.anchor} by an alias"
        if is_long_number(getattr(event, "value", "")):
            return f"contains a number of more than {MAX_DIGITS} digits"
        if (tag := getattr(event, "tag", None)) is not None:
            return f"contains the tag {tag}"
    return None


class _Loader(get_yaml_loader()):  # type: ignore[misc]
    """The rules of OmegaConf, which accepts no other keys either."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if others := [key for key in mapping if not isinstance(key, str | int | float)]:
            raise yaml.constructor.ConstructorError(None, None, f"found the key {others[0]}", node.start_mark)
        return mapping


_FastLoader = _Loader
if yaml.__with_libyaml__:
    from yaml.cyaml import CParser  # type: ignore[import-untyped]

    class _FastLoader(CParser, _Loader):  # type: ignore[no-redef]
        """The same rules in the C library, which takes a tenth of the time."""

        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

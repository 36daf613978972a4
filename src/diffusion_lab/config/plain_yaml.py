"""YAML texts that other people wrote: read without running code, in little time and memory."""

from collections.abc import Iterable
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf._utils import get_yaml_loader

from diffusion_lab.files.regular import MAX_DIGITS, is_long_number

MAX_LEVELS = 100
"""Largest number of nested lists and dicts. The C library crashes at about 30,000."""


def load_yaml(text: str) -> Any:
    """Return the values of a YAML text, as OmegaConf reads them: 1e-3 is a number, and a repeated key is an error.

    Raises ValueError with a phrase such as "contains the tag !x" for a text that could run code, or that takes much
    time or memory; raises YAMLError for a text that is not YAML.
    """
    try:
        return _load(text, _FastLoader)
    except yaml.YAMLError as error:
        if "Unicode character escape" not in str(error):
            raise
        return _load(text, _Loader)  # PyYAML writes parts of file names that are not text in a form that it alone reads


def _load(text: str, loader: type) -> Any:
    if problem := _problem(yaml.parse(text, Loader=loader)):
        raise ValueError(problem)
    return yaml.load(text, Loader=loader)


def _problem(events: Iterable[yaml.Event]) -> str | None:
    level = 0
    for event in events:
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MAX_LEVELS:
            return f"contains more than {MAX_LEVELS} nested lists and dicts"
        if isinstance(event, yaml.AliasEvent):
            return f"repeats the node {event.anchor} by an alias"
        if is_long_number(getattr(event, "value", "")):
            return f"contains a number of more than {MAX_DIGITS} digits"
        if (tag := getattr(event, "tag", None)) is not None:
            return f"contains the tag {tag}"
    return None


class _Rules:
    """The rules of OmegaConf's loader."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)  # type: ignore[misc]
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            repeated = next((key for key in keys if keys.count(key) > 1), keys[0])
            raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {repeated}", node.start_mark)
        if others := [key for key in mapping if not isinstance(key, str | int | float)]:
            raise yaml.constructor.ConstructorError(None, None, f"found the key {others[0]}", node.start_mark)
        return mapping


class _Loader(_Rules, yaml.SafeLoader):
    pass


class _FastLoader(_Rules, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes a tenth of the time, in the C library."""

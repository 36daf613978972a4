"""Values of environment variables that are secret, such as WANDB_API_KEY: they are stored and logged nowhere."""

import os
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf.resolvers import oc

from diffusion_lab.paths import CONF

SHORTEST = 6
"""Length of the shortest secret that is searched in all texts. Shorter ones, such as 1 or true, are ordinary texts."""

SHORTEST_WORD = 3
"""Length of the shortest secret that is searched in texts as a whole word, if a setting has read it."""

_NAMES = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)

_read: set[str] = set()
"""Values of secret variables that a setting has read by ${oc.env:NAME}; they are secret whatever they are."""


def environment(name: str, *default: Any) -> Any:
    """Return the value of an environment variable: the resolver oc.env, which also notes the secrets that it reads."""
    if _NAMES.search(name) and (value := os.environ.get(name)):
        _read.add(value)
    return oc.env(name, *default)


def secrets() -> list[str]:
    """Return the values of the environment variables whose names contain KEY, TOKEN, SECRET or PASSWORD.

    Values that are short, a path, or a word in conf/ (KEYBOARD=cifar10) are no secrets unless a setting has read them.
    """
    values = {value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= SHORTEST}
    return sorted({*_read, *(value for value in values if not _is_ordinary(value))}, key=len, reverse=True)


def is_secret(value: Any) -> bool:
    """Return whether a value is a text that contains a secret."""
    return isinstance(value, str) and (value in _read or hidden(value) != value)


def hidden(text: str) -> str:
    """Return a text in which *** replaces all secrets.  A secret may contain another: the longest is replaced first."""
    for secret in secrets():
        if len(secret) >= SHORTEST:
            text = text.replace(secret, "***")
        elif len(secret) >= SHORTEST_WORD:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


@cache
def _is_ordinary(value: str) -> bool:
    """Return whether a value is an existing path, or stands as a word in conf/, so that it cannot be a secret."""
    if os.path.isabs(value):
        return os.path.exists(value)
    word = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")
    return any(word.search(file.read_text()) or value == file.stem for file in CONF.rglob("*.yaml"))


def without_secrets(node: Any) -> Any:
    """Return a plain config in which null replaces each text that contains a secret."""
    if isinstance(node, dict):
        return {key: without_secrets(child) for key, child in node.items()}
    if isinstance(node, list):
        return [without_secrets(child) for child in node]
    return None if is_secret(node) else node


def secret_keys(node: Any, path: str = "") -> Iterator[str]:
    """Yield the full key of each value in a plain config that contains a secret."""
    if isinstance(node, (dict, list)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from secret_keys(child, f"{path}.{key}".lstrip("."))
    elif is_secret(node):
        yield path

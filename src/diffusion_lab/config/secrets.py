"""Values of environment variables that are secret, such as WANDB_API_KEY: they are stored and logged nowhere."""

import os
import re
from collections.abc import Iterator
from typing import Any

SHORTEST = 6
"""Length of the shortest secret. Shorter values, such as 1 or true, are also values of ordinary settings."""

_NAMES = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)


def secrets() -> list[str]:
    """Return the values of the environment variables whose names contain KEY, TOKEN, SECRET or PASSWORD."""
    values = {value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= SHORTEST}
    return sorted(values, key=len, reverse=True)  # a secret may contain another


def is_secret(value: Any) -> bool:
    """Return whether a value is a text that contains a secret."""
    return isinstance(value, str) and any(secret in value for secret in secrets())


def hidden(text: str) -> str:
    """Return a text in which *** replaces all secrets."""
    for secret in secrets():
        text = text.replace(secret, "***")
    return text


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

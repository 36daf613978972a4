"""Names and values of settings in error messages, as a user types them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig

from diffusion_lab.errors import UserError

_SETTING = re.compile(r"(?:^|(?<=; ))([a-z_]\w*(?:\.\w+)*)(?:: (\w+))?(?= must )")
"""A setting or a node and its argument, at the start of one of the sentences of a message."""

_REFERENCE = re.compile(r"\$\{([a-z_][\w.]*)\}")


@contextmanager
def name_as_typed(config: DictConfig) -> Iterator[None]:
    """Raise the UserErrors of the body with settings named as `typed_name` returns them, and None as null."""
    try:
        yield
    except UserError as error:
        message = _SETTING.sub(lambda match: _renamed(match, config), str(error))
        error.args = (re.sub(r", got None\b", ", got null", re.sub(r", got \.$", ", got an empty value.", message)),)
        raise


def typed_name(path: str, config: DictConfig) -> str | None:
    """Return the setting that a user sets for the setting `path` of an unresolved config; None if there is no `path`.

    The setting data.datamodule.batch_size is ${data.batch_size}: users set data.batch_size.
    """
    node: Any = config
    parts = path.split(".")
    for k, part in enumerate(parts):
        is_filled = isinstance(node, DictConfig) and not node._is_none() and not node._is_missing()
        node = node._get_node(part, validate_access=False) if is_filled else None
        if node is None:
            return None
        if node._is_interpolation():
            reference = _REFERENCE.fullmatch(str(node._value()))
            return (typed_name(".".join((reference[1], *parts[k + 1 :])), config) if reference else None) or path
    return path


def _renamed(match: re.Match[str], config: DictConfig) -> str:
    """Return data.batch_size for a match of data.datamodule: batch_size or of data.datamodule.batch_size."""
    node, argument = match[1], match[2]
    return typed_name(f"{node}.{argument}" if argument else node, config) or match[0]

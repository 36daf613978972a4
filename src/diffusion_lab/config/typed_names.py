"""Names of settings in error messages, as a user types them."""

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
    """Raise the UserErrors of the body with settings named as `typed_name` returns them."""
    try:
        yield
    except UserError as error:
        error.args = (_SETTING.sub(lambda match: _renamed(match, config), str(error)),)
        raise


def typed_name(path: str, config: DictConfig) -> str:
    """Return the setting that the setting `path` of an unresolved config refers to, or `path` if it has its own value.

    The setting data.datamodule.batch_size is ${data.batch_size}: users set data.batch_size.
    """
    node: Any = config
    parts = path.split(".")
    for k, part in enumerate(parts):
        is_filled = isinstance(node, DictConfig) and not node._is_none() and not node._is_missing()
        node = node._get_node(part, validate_access=False) if is_filled else None
        if node is None:
            return path
        if node._is_interpolation():
            reference = _REFERENCE.fullmatch(str(node._value()))
            return typed_name(".".join((reference[1], *parts[k + 1 :])), config) if reference else path
    return path


def _renamed(match: re.Match[str], config: DictConfig) -> str:
    node, argument = match[1], match[2]
    if argument is None:
        return typed_name(node, config)
    name = typed_name(path := f"{node}.{argument}", config)
    return match[0] if name == path else name

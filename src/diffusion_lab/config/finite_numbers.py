"""Refusal of numbers in a config that are not finite."""

import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.validation import raise_problems

OPEN_ENDED = ("sigma_max", "interval")
"""Names of the settings whose range includes infinity: a largest noise level, and an interval of noise levels."""

CHECKED_LIBRARIES = ("diffusion_lab", "torch", "lightning")
"""Libraries whose other settings must be finite. Classes of other libraries check infinite settings themselves."""


def require_finite(config: DictConfig) -> None:
    """Raise UserError for each number that is NaN, and for each infinite number whose setting must be finite.

    Interpolations are not resolved: in a config that has not been resolved, only the numbers that it contains are
    checked.
    """
    raise_problems(list(_problems(OmegaConf.to_container(config, resolve=False), "", accepts_infinity=False)))


def _problems(node: Any, path: str, *, accepts_infinity: bool) -> Iterator[str]:
    if isinstance(node, float) and not math.isfinite(node):
        if math.isnan(node) or not accepts_infinity:
            yield f"{path} must be a finite number, got {node}"
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _problems(item, f"{path}.{index}", accepts_infinity=accepts_infinity)
    elif isinstance(node, dict):
        if "_target_" in node:
            accepts_infinity = str(node["_target_"]).partition(".")[0] not in CHECKED_LIBRARIES
        for key, child in node.items():
            name = f"{path}.{key}".lstrip(".")
            yield from _problems(child, name, accepts_infinity=accepts_infinity or key in OPEN_ENDED)

"""Checks of the settings of a sweep's runs, so that no run starts if one of them would be refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.config import compilation
from diffusion_lab.config.overrides import override_key
from diffusion_lab.paths import CONF
from diffusion_lab.runs.find import find_targets
from diffusion_lab.runs.load import resolve
from diffusion_lab.runs.setup import sampling as sampling_setup
from diffusion_lab.runs.setup import training as training_setup
from diffusion_lab.runs.setup.trainer_settings import apply_trainer_settings
from diffusion_lab.sweeps.comparison import without_hydra


def only_choices(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that select choices of config groups."""
    return [override for override in overrides if (CONF / override_key(override).partition("@")[0]).is_dir()]


def check_settings(config: DictConfig, overrides: Sequence[str], defaults: DictConfig, folder: Path) -> None:
    """Raise UserError for a number that the run in `folder` would reject, or for a value of the wrong type.

    defaults: config without overrides of single settings. Only if the type of a setting differs from its default, the
        types of all arguments are checked, because this check imports torch and Lightning.
    """
    is_training = "run" not in config and "model" in config and "trainer" in config
    if is_training:
        training_setup.check_numbers(config)
    elif "run" in config:
        sampling_setup.require_whole_numbers(config)
    if not any(_has_other_type(config, defaults, override_key(override)) for override in overrides):
        return
    if is_training:
        plain = without_hydra(config, folder)
        apply_trainer_settings(plain, overrides)
        resolved = resolve(plain)
        resolved.trainer = compilation.without_acceleration(resolved.trainer)
        training_setup.check_arguments(resolved, [])
    elif "sampler" in config and config.get("run") is not None:
        for target in find_targets(config):
            sampling_setup.checked_config(config, target)


def _has_other_type(config: DictConfig, defaults: DictConfig, key: str) -> bool:
    """Return whether the value of a setting may have a wrong type: another type than its default."""
    value, default = _select(config, key), _select(defaults, key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if OmegaConf.is_config(default) or (is_number and (default is None or isinstance(default, float))):
        return False
    return type(value) is not type(default)


def _select(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:  # an interpolation that the started run resolves
        return None

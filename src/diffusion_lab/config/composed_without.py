"""Composition of the config of the command line without one of its settings, for messages about this setting."""

import sys
from collections.abc import Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.config.overrides import override_key
from diffusion_lab.config.search_path import KEY as SEARCH_PATH
from diffusion_lab.paths import CONF


def composed_without(key: str, config_name: str) -> DictConfig:
    """Compose the config of the command line without its overrides of `key`.

    Of the values of a sweep, the first one is used for which the config has no `key`, if there is one.
    """
    found = OmegaConf.create()
    for overrides in _variants(key):
        found = _composed(config_name, overrides, with_hydra=key.startswith("hydra."))
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(found, parent) if parent else found
        if not isinstance(node, DictConfig) or name not in node:
            break
    return found


def _variants(key: str) -> list[list[str]]:
    """Return the overrides of the command line, except those of `key`, for each swept value of the group of `key`."""
    variants: list[list[str]] = [[]]
    for text in sys.argv[1:]:
        if "=" not in text or text.startswith("-") or override_key(text).split("@")[0] == key:
            continue
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue  # Hydra has not read it either
        values = [text]
        if override.is_discrete_sweep():
            values = [f"{text.partition('=')[0]}={value}" for value in override.sweep_string_iterator()]
        elif override.is_sweep_override():
            continue
        used = values if override_key(text) == key.partition(".")[0] else values[:1]
        variants = [[*others, value] for others in variants for value in used]
    return variants


def _composed(config_name: str, given: Sequence[str], *, with_hydra: bool) -> DictConfig:
    """Compose a config with the given overrides, or with those of them that Hydra accepts together."""
    keys = {override: override_key(override) for override in given}
    choices = [override for override, key in keys.items() if key == SEARCH_PATH or (CONF / key).is_dir()]
    for overrides in (given, choices, []):
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                return hydra.compose(config_name, overrides=list(overrides), return_hydra_config=with_hydra)
        except (HydraException, OmegaConfBaseException):
            continue  # an override of another key is wrong too; the config without overrides has the same groups
    return OmegaConf.create()

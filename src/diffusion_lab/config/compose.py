"""Compose configs and explain why one cannot be compose_config."""

import re
import sys
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.config.earlier_versions import current_choice, current_key
from diffusion_lab.config.validation import META, suggestion
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF


def compose_config(config_name: str, overrides: list[str]) -> DictConfig:
    """Another config beside that of the running job.  Raises UserError where it cannot be compose_config."""
    try:
        return hydra.compose(config_name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_sentence(error, config_name).rstrip(".")) from error


def command_name() -> str:
    """Of the config that is composed, and of the file in src/ that runs."""
    return str(HydraConfig.get().job.config_name)


def in_sweep() -> bool:
    """Whether this run is one of a sweep."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def _sentence(error: Exception, config_name: str) -> str:
    """What a person did wrong, in one sentence."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        renamed = current_choice(group, choice)
        meant = (
            f"; it is now {group}={renamed}"
            if renamed
            else _meaning_here(group, choice) or suggestion(choice, list(error.options))
        )
        return f"{group} must be one of {', '.join(error.options)}, got {choice}{meant}."
    if isinstance(error, ConfigCompositionException):
        if found := re.match(
            r"Could not (?:override|append to config\.?|delete from config\.?) ?'([^']+)'", str(error)
        ):
            return _unknown_key(found[1], config_name)
        if found := re.search(r"Could not override '([^']+)'\.", str(error)):
            return _unknown_key(found[1].split("@")[0], config_name)
    return re.sub(r" See https://hydra\S+ for details", ".", " ".join(str(error).split()))


def _meaning_here(group: str, choice: str) -> str:
    """The end of a sentence that says what a name of other code is called here, if it is one."""
    meaning = OmegaConf.select(OmegaConf.load(CONF / "_names_elsewhere.yaml"), f"{group}.{choice}")
    return f"; elsewhere that is what is here {group}={meaning}" if meaning else ""


def _unknown_key(key: str, config_name: str) -> str:
    """The sentence for a key that the config does not have."""
    if renamed := current_key(key):
        return f"{key} is now called {renamed}."
    node = _composed_without(key, config_name)
    parent, _, name = key.rpartition(".")
    while parent and _at(node, parent) is None:
        parent, _, name = parent.rpartition(".")
    key = f"{parent}.{name}" if parent else name
    choices = [str(choice) for choice in node] if isinstance(node := _at(node, parent), DictConfig) else []
    accepted = sorted(choice for choice in choices if choice not in META and not choice.startswith("_"))
    if not parent:
        accepted = sorted({*accepted, *_groups(config_name)} - {"hydra"})
    where = f" in {parent}" if parent else ""
    children: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    below = [f"{parent}.{child}.{name}".lstrip(".") for child, content in children.items() if _has(content, name)]
    meant = f"; perhaps you mean {below[0]}" if below else suggestion(name, accepted)
    return f"{key} is not a setting{where}: accepted are {', '.join(accepted) or 'none'}{meant}."


def _groups(config_name: str) -> list[str]:
    """The groups that a command's main file names."""
    entries = OmegaConf.load(CONF / f"{config_name}.yaml").defaults
    named = [str(key).split("@")[0] for entry in entries if isinstance(entry, DictConfig) for key in entry]
    return [name for name in named if (CONF / name).is_dir()]


def _has(node: Any, name: str) -> bool:
    return isinstance(node, dict) and name in node


def _composed_without(key: str, config_name: str) -> DictConfig:
    """The config that the command line asks for, leaving out its overrides of `key`."""
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-") and "," not in word]
    kept = [word for word in overrides if word.lstrip("+~").split("=")[0].split("@")[0] != key]
    for candidates in (kept, []):
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                return hydra.compose(config_name, overrides=candidates, return_hydra_config=key.startswith("hydra."))
        except (HydraException, OmegaConfBaseException):
            continue  # a second mistake beside the first: the config without any override still names the keys
    return OmegaConf.create()


def _at(config: DictConfig, path: str) -> Any:
    return OmegaConf.select(config, path) if path else config

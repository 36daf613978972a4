"""Composition of configs, and error messages for configs that cannot be composed."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from diffusion_lab.config.composed_without import composed_without
from diffusion_lab.config.documentation import settings
from diffusion_lab.config.earlier_versions import current_choice, current_key
from diffusion_lab.config.library_classes import drop_unused_settings, with_plus
from diffusion_lab.config.overrides import LISTS, override_key
from diffusion_lab.config.program import command_line
from diffusion_lab.config.search_path import KEY as SEARCH_PATH
from diffusion_lab.config.search_path import search_path_overrides
from diffusion_lab.config.validation import META, suggestion
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF, expanduser

BY_SCHEDULE = ("prediction", "times", "weighting", "time_grid")
"""Config groups that the file of a schedule selects."""


def compose_config(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a config other than the config of the running job.  Raises UserError if it cannot be composed."""
    if not any(override_key(override) == SEARCH_PATH for override in overrides):
        overrides = [*overrides, *search_path_overrides()]
    try:
        config = hydra.compose(config_name, overrides=with_plus(config_name, overrides))
        drop_unused_settings(config, overrides)
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(error_message(error, config_name)) from error


def command_name() -> str:
    """Return the name of the running command: the stem of its files in src/ and conf/."""
    return str(HydraConfig.get().job.config_name)


def in_sweep() -> bool:
    """Return whether the current run belongs to a sweep."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def error_message(error: Exception, config_name: str) -> str:
    """Return a one-sentence message for an error of Hydra or OmegaConf."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        renamed = current_choice(group, choice)
        hint = (
            f"; use {group}={renamed}, the new name of {choice}"
            if renamed
            else _name_here(group, choice) or _close_choice(choice, error.options)
        )
        if group == "data" and expanduser(choice).is_dir():
            hint = f"; data=class_folders data.path={choice} or data=folder data.path={choice} reads your folder"
        return f"{group} must be one of {', '.join(_listed(group, error.options))}, got {choice}{hint}."
    text = " ".join(str(error).split())
    if found := re.match(r"Ambiguous value for argument '\+*([^=]+)=(.*?)' 1\.", text):
        accepted = f"one value, a list ([{found[2]}])"
        if (CONF / found[1]).is_dir():
            accepted = "a list ([" + found[2] + "])" if found[1] in LISTS else "one choice"
        return f"{found[1]} must be {accepted} or, with -m, the values of a sweep, got {found[2]}."
    if found := re.search(r"Could not load '(.+)/([^/']+)'\. Config search path", text):
        choices = [path.stem for path in sorted((CONF / found[1]).glob("*.yaml"))]
        return f"{found[1]} must be one of {', '.join(choices)}, got {found[2]}{suggestion(found[2], choices)}."
    if found := re.match(r"\w+ raised while resolving interpolation: (.*?)(?: full_key: (\S+)|$)", text):
        node: Any = getattr(error, "parent_node", None)
        return _not_computed(found[2], None if node is None else node._get_root(), reason=found[1])
    if isinstance(error, InterpolationKeyError):
        missing = re.search(r"'([^']+)' not found", str(error))
        key = re.search(r"full_key: (\S+)", str(error))
        where = key[1] if key else "a value"
        name = missing[1] if missing else "..."
        group = f"; a schedule selects the group {name} in its defaults list" if (CONF / name).is_dir() else ""
        return f"{where} refers to ${{{name}}}, which is not a setting{group}."
    if found := re.match(r"Error merging override \+*([^=]+)=(.*)", str(error)):
        return f"{found[1]} must be a value, or ${{NAME}} for the value of another setting, got {found[2]}."
    if isinstance(error, ConfigCompositionException):
        if found := re.match(
            r"Could not (?:override|append to config\.?|delete from config\.?) ?'([^']+)'", str(error)
        ):
            return _unknown_key(found[1], config_name)
        if found := re.search(r"Could not override '([^']+)'\.", str(error)):
            if "@experiment." in found[1]:
                return _without_global_package()
            return _unknown_key(found[1].split("@")[0], config_name)
    return re.sub(r" See https://hydra\S+ for details| full_key: .*", ".", text)


def require_global_experiment(config: DictConfig) -> None:
    """Raise UserError if the settings of an experiment are below the key `experiment`, where they have no effect."""
    if OmegaConf.is_dict(config.get("experiment")):
        raise UserError(_without_global_package())


def _without_global_package() -> str:
    given = [argument for argument in sys.argv[1:] if argument.startswith("experiment=")]
    return (
        f"the file of {' '.join(given) or 'the experiment'} must have the line `# @package _global_` at its beginning, "
        "without which its settings are not settings of the run."
    )


def _not_computed(key: str | None, config: Any, *, reason: str) -> str:
    """Return the message for an error in a resolver, which names the settings from which the value is computed.

    key: setting whose value is computed, if it is known.  config: the complete config, if it is known.
    """
    if key is None or config is None:
        return f"{key or 'a setting'} cannot be computed from the given settings: {reason}."
    given = {argument.lstrip("+~").partition("=")[0] for argument in sys.argv[1:]}
    inputs = _inputs(config, key)
    inputs = {name: value for name, value in inputs.items() if name in given} or inputs
    values = " and ".join("null" if value is None else str(value) for value in inputs.values())
    kind = "a value" if len(inputs) == 1 else "values"
    return f"{' and '.join(inputs)} must have {kind} from which {key} can be computed, got {values}."


def _inputs(config: Any, key: str) -> dict[str, Any]:
    """Return the settings from which the value of a key is computed, with their values."""
    parent, _, name = key.rpartition(".")
    node = (_at(config, parent) if parent else config)._get_node(name)
    references = re.findall(r"\$\{(\.?)([\w.]+)\}", str(node._value())) if node._is_interpolation() else []
    inputs = {key: None if node._is_none() or node._is_missing() else node} if not references else {}
    for dot, other in references:
        inputs |= _inputs(config, f"{parent}.{other}" if dot else other)
    return inputs


def _listed(group: str, choices: Sequence[str]) -> list[str]:
    """Return the choices of a group that help texts list, which are not those that Hydra and its plugins register."""
    registered: Any = ConfigStore.instance().repo if group.startswith("hydra/") else {}
    for part in group.split("/"):
        registered = registered.get(part, {})
    return [choice for choice in choices if f"{choice}.yaml" not in registered and not choice.startswith("_")]


def _name_here(group: str, choice: str) -> str:
    """Return a hint that translates a name that other libraries or papers use; "" if the name is unknown."""
    name = _elsewhere(group, choice)
    return f"; use {group}={name}" if name else ""


def _elsewhere(group: str, name: str) -> str | None:
    names: Any = OmegaConf.to_container(OmegaConf.load(CONF / "_names_elsewhere.yaml"))
    found: str | None = names.get(group, {}).get(name.lower())
    if found is None and group == "metrics" and "_" in name:  # name of a metric value, such as fd_fashion_cnn_2k_train
        start = name.rpartition("_")[0]
        return start if (CONF / group / f"{start}.yaml").is_file() else _elsewhere(group, start)
    return found


def _close_choice(choice: str, choices: Sequence[str]) -> str:
    """Return a hint with the closest choice, and a hint at config folders for the name of a choice of one's own.

    The name of a choice with a further word, such as my_euler, is not a mistyped one.
    """
    close = suggestion(choice, list(choices))
    is_own = any(choice != name and name in choice.split("_") for name in choices)
    return close + (_own_choices_hint() if is_own or not close else "")


def _own_choices_hint() -> str:
    """Return a hint at config folders of other packages; "" if the command line names one."""
    return "" if search_path_overrides() else "; --config-dir FOLDER adds the choices of your own folder"


def _unknown_key(key: str, config_name: str) -> str:
    """Return the message for an override of a key that the config does not have."""
    if renamed := current_key(key):
        return f"{key} was renamed to {renamed}."
    if absent := _elsewhere("absent", key):
        return f"{key} is not a setting; {absent} is not part of this version."
    if edit := _elsewhere("edit", key):
        command = "" if config_name == "edit" else f"{command_line('edit')} run=RUN "
        return f"{key} is not a setting; use `{command}{edit}`."
    composed, typed = (node := composed_without(key, config_name)), key
    group, dot, _ = key.partition(".")
    if group in BY_SCHEDULE and "schedule" in composed and group not in composed:
        return (
            f"{key} is not a setting with this schedule, whose file must select the group {group} in its defaults "
            "list, as conf/schedule/cosine.yaml does."
        )
    if dot and group in _groups(config_name) and _at(composed, group) is None:
        return f"{key} is not a setting without a choice of {group}{_choices_with(key) or f'; add {group}=CHOICE'}."
    if message := _not_chosen(key, composed):
        return message
    parent, _, name = key.rpartition(".")
    while parent and _at(node, parent) is None:
        parent, _, name = parent.rpartition(".")
    key = f"{parent}.{name}" if parent else name
    if parent and isinstance(found := _at(node, parent), DictConfig) and not found:  # settings without names
        return f"{key} is not in the config; +{key}=VALUE adds it."
    choices = [str(choice) for choice in node] if isinstance(node := _at(node, parent), DictConfig) else []
    accepted = sorted(choice for choice in choices if choice not in META and not choice.startswith("_"))
    if not parent:
        accepted = sorted({*accepted, *_groups(config_name)} - {"hydra"})
    where = f" in {parent}" if parent else ""
    if isinstance(own := _at(composed, key), DictConfig):  # a node without choices, such as data of evaluate
        inner = ", ".join(f"{key}.{name}" for name in sorted(map(str, own)) if name not in META)
        return f"{key} is not a setting with choices; accepted settings are {inner}."
    if name in choices and key != typed:
        return f"{typed} is not a setting while {key} is null."
    known = _elsewhere("settings", key)
    candidates = known.split(" or ") if known else []
    meant = [name for name in candidates if (CONF / name).is_dir() or _has_setting(composed, name)]
    if not meant and (message := _setting_elsewhere(typed, config_name)):
        return message
    children: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    deeper = [f"{parent}.{child}.{name}".lstrip(".") for child, content in children.items() if _has(content, name)]
    meant = meant or deeper
    hint = f"; perhaps you mean {meant[0]}" if meant else _choices_with(key) or suggestion(name, accepted)
    accepted_here = f"; accepted settings are {', '.join(accepted)}" if accepted else ""
    return f"{key} is not a setting{where}{hint}{accepted_here}."


def _not_chosen(key: str, config: DictConfig) -> str:
    """Return the message for a setting of a choice that a list of choices, such as metrics, lacks; "" for others."""
    group, _, rest = key.partition(".")
    choice, node = rest.partition(".")[0], _at(config, group)
    if group not in LISTS or not isinstance(node, DictConfig) or choice in node:
        return ""
    path = CONF / group / f"{choice}.yaml"
    if not path.is_file() or key not in settings(path, group):
        return ""
    chosen = [name for name in map(str, node) if (CONF / group / f"{name}.yaml").is_file()]
    listed = ",".join([*chosen, choice])
    return f"{key} is a setting of {group}={choice}, which is not chosen; use '{group}=[{listed}]'."


def _setting_elsewhere(key: str, config_name: str) -> str:
    """Return the message for a setting of training or of evaluations in a command with `run`; "" for other keys."""
    root, own = key.partition(".")[0], list(OmegaConf.load(CONF / f"{config_name}.yaml"))
    of_run = root == "data" and bool(_choices_with(key)) and any(word.startswith("run=") for word in sys.argv)
    if "run" not in own or (root in (*own, *_groups(config_name), "hydra") and not of_run):
        return ""
    if root in _groups("evaluate") and not of_run:
        return f"{key} is a setting of `{command_line('evaluate')}`, which measures metrics."
    if root not in OmegaConf.load(CONF / "train.yaml") and not (CONF / root).is_dir():
        return ""
    command = command_line(config_name)
    return f"{key} is a setting of training, which `run` determines; `{command} --help` lists what can be set here."


def _choices_with(key: str) -> str:
    """Return a hint at the choices of a config group that have a setting; "" if there is none."""
    node = ".".join(key.split(".")[: 2 if key.startswith("hydra.") else 1])  # hydra.launcher is a group, not hydra
    group = node.replace(".", "/")
    found = [path.stem for path in sorted((CONF / group).glob("*.yaml")) if key in settings(path, node)]
    return f"; add {group}={' or '.join(found)} for {key}" if found else ""


def _groups(config_name: str) -> list[str]:
    """Return the config groups in the defaults list of a command's main config file."""
    entries = OmegaConf.load(CONF / f"{config_name}.yaml").defaults
    named = [str(key).split("@")[0] for entry in entries if isinstance(entry, DictConfig) for key in entry]
    return [name for name in named if (CONF / name).is_dir()]


def _has(node: Any, name: str) -> bool:
    return isinstance(node, dict) and name in node


def _has_setting(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = _at(config, parent)
    return isinstance(node, DictConfig) and name in node


def _at(config: DictConfig, path: str) -> Any:
    return OmegaConf.select(config, path) if path else config

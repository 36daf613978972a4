"""Command-line overrides: selection of the overrides that identify a run, quoting, and run folder names."""

import fnmatch
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.library_classes import without_plus
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF

EXECUTION_SETTINGS = (
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "data.num_workers"),
    *("sweep.*", "logger", "logger.*", "hydra*"),
)
"""Glob patterns of the settings that define where and how a run is executed; they do not identify the run."""

LISTS = ("metrics", "callbacks", "logger", "experiment")
"""Config groups that accept a list of choices."""

OVERRIDES_FILE = "overrides.yaml"
"""Name of the file in a run folder that contains the overrides of the run."""

SWEEP_VARIABLE = "DIFFUSION_LAB_SWEEP"
"""Environment variable with the command line of a sweep, one argument per line."""


def identifying_overrides(overrides: Sequence[str]) -> set[str]:
    """Return the overrides that identify a run: all except overrides of EXECUTION_SETTINGS."""
    return {
        without_plus(override)
        for override in overrides
        if not any(fnmatch.fnmatch(override_key(override), pattern) for pattern in EXECUTION_SETTINGS)
    }


def given_overrides() -> list[str]:
    """Return the overrides of the running command as they were typed: ${NAME} in them is not resolved."""
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(map(str, overrides))


def override_key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def without_alias(override: str) -> str:
    """Return an override of a setting of a choice that is another name of a second choice, by the name of the second.

    metrics.nll.num_images=5 becomes metrics.bound.num_images=5, because metrics/nll.yaml contains only a defaults list
    with the entry bound. Other overrides are returned unchanged.
    """
    if (found := re.match(r"([+~]*)(\w+)\.(\w+)(?=\.\w)", override)) is None:
        return override
    prefix, group, choice = found.groups()
    path = CONF / group / f"{choice}.yaml"
    if group not in LISTS or not path.is_file():
        return override
    content = OmegaConf.load(path)
    others = [str(entry) for entry in content.defaults] if list(content) == ["defaults"] else []
    return f"{prefix}{group}.{others[0]}{override[found.end() :]}" if len(others) == 1 else override


def require_single_choices(arguments: Sequence[str]) -> None:
    """Raise UserError if the arguments select two choices of one config group.

    Hydra would ignore the first choice, and would merge the choices of a list.
    """
    choices: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not (CONF / key).is_dir():
            continue
        if re.match(r"\[[^]]*,", value) and key not in LISTS:
            raise UserError(
                f"{key} must be one choice, got {value}; a sweep over several choices is -m {key}={value.strip('[]')}."
            )
        if choices.setdefault(key, value) != value:
            raise UserError(f"{key} must be given once, got {key}={choices[key]} and {key}={value}.")


def with_sweep_name(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the overrides of a run with sweep.name set to the name of its sweep folder."""
    others = (override for override in overrides if override_key(override) != "sweep.name")
    return [*others, f"sweep.name={quote(folder.name)}"]


def quote(text: str) -> str:
    """Quote a text as a value in Hydra's override grammar, in which a backslash escapes only before a quote."""
    escaped = re.sub(r'(\\+)(?="|$)', r"\1\1", text).replace('"', '\\"')
    return f'"{escaped}"'


def unquote(value: str) -> str:
    """Return the text of a value that `quote`, or a user, put between quotes; other values are returned unchanged."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    return re.sub(rf"(\\+)({value[0]}|$)", lambda match: "\\" * (len(match[1]) // 2) + match[2], value[1:-1])


def sweep_folder_name(name: str | None, params: DictConfig | None) -> str:
    """Return the folder name of the sweep on the command line.

    The folder name is `name` if given. If `name` is None, the folder name consists of the experiment or run, the swept
    keys, and a digest of all other identifying overrides.
    params: value of hydra.sweeper.params, whose keys some sweepers also sweep.
    """
    if name:
        return _as_file_name(str(name))
    parsed = _sweep_overrides()
    keys = [*_swept_keys(parsed), *(str(key) for key in params or ())]
    fixed = [override.input_line or "" for override in parsed if override.key_or_group not in keys]
    subjects = [
        _as_file_name(Path(override.partition("=")[2]).name)
        for override in fixed
        if override_key(override) in ("experiment", "run")
    ]
    identifying = sorted(identifying_overrides(fixed))
    digest = [_digest(" ".join(identifying))] if identifying else []
    return "-".join([*subjects, "_".join(map(_as_file_name, keys)) or "one", *digest])


def run_folder_name(overrides: Sequence[str], params: DictConfig | None) -> str:
    """Return the folder name of a run in its sweep: the swept keys with their values.

    params: see `sweep_folder_name`.
    """
    keys = {*_swept_keys(_sweep_overrides()), *(str(key) for key in params or ())}
    swept = [str(override) for override in overrides if override_key(str(override)) in keys]
    # The name contains only the last part of a path, but the digest is computed from the complete path.
    shown = "_".join(f"{override_key(override)}-{override.partition('=')[2].rpartition('/')[2]}" for override in swept)
    has_path = any("/" in override for override in swept)
    return _as_file_name(shown, digested="_".join(swept) if has_path else None) or "run"


def export_command_line() -> None:
    """Export the command line of a sweep to child processes, whose own command line does not contain the sweep."""
    if any(argument in ("-m", "--multirun") for argument in sys.argv[1:]):
        os.environ[SWEEP_VARIABLE] = "\n".join(sys.argv[1:])


def _sweep_overrides() -> list[Override]:
    arguments = os.environ.get(SWEEP_VARIABLE, "").split("\n")
    overrides = [text for text in arguments if re.match(r"[\w.+~/@-]+=", text) and not re.match(r"\+*hydra\b", text)]
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException:
        return []  # Hydra itself reports the error


def _swept_keys(overrides: Sequence[Override]) -> list[str]:
    return [override.key_or_group for override in overrides if override.is_sweep_override()]


def _as_file_name(text: str, max_length: int = 120, digested: str | None = None) -> str:
    """Convert a text to a file name that needs no quotes in an override; if this changes the text, append a digest.

    digested: text from which the digest is computed, if `text` is only a part of it; None uses `text`.
    """
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-")
    if digested is None and name == text and len(name) <= max_length:
        return name
    return f"{name[: max_length - 5]}-{_digest(digested or text)[:4]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]

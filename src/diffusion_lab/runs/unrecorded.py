"""Resuming of a run folder that this user has not written, see `runs.trust`: what is kept from the folder.

Kept are the settings that define the result: numbers and words for `lightning.Trainer`, this package's callbacks and
the data. Loggers with their project and address, plugins, callbacks of other packages, and all paths outside of the run
folder come from the command line and from conf/, because the folder could otherwise upload or write to any place.
"""

import fnmatch
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from diffusion_lab.config.accepted_targets import FROM_PRETRAINED, HUB_NAMES, foreign_targets
from diffusion_lab.config.overrides import override_key, unquote
from diffusion_lab.config.search_path import given_folders
from diffusion_lab.config.trusted_packages import trusted_packages
from diffusion_lab.errors import UserError
from diffusion_lab.files.regular import gigabytes, memory_budget
from diffusion_lab.paths import CONF, PACKAGE
from diffusion_lab.runs.settings.changes import KeyPath, flatten, unflatten
from diffusion_lab.runs.settings.typed_paths import PATHS
from diffusion_lab.runs.trust import is_recorded

logger = logging.getLogger(__name__)

OF_THE_USER = (
    *("logger", "logger.*", "hydra*", "logs", "run_folder", "sweep.*", "trust", "take_over"),
    *(f"trainer.{name}{end}" for name in ("plugins", "strategy", "profiler", "logger", "callbacks")
      for end in ("", ".*")),
    *("trainer.default_root_dir", "trainer.model_registry"),
)  # fmt: skip
"""Glob patterns of the settings that come from the command line and conf/, and not from such a folder."""


NAMES_OF_FILES = (".lock", ".log", ".json", ".yaml", ".csv", ".png", ".ckpt")
"""Ends of the names of files that a run writes, which no folder may have."""

NOT_READ_WHOLE = (".ckpt", ".pt", ".log", ".png", ".npy", ".npz")
"""Ends of the names of files that are not read into the memory as a whole when a run continues."""

LINK_OF_WANDB = "*wandb/*run-*/logs/debug-core.log"
"""Link to a log file in the user's cache that W&B puts into each run, and that no later start of the run opens."""

LINK_OF_SLURM = r"slurm_[\w.]+\.(out|err)"
"""Regular expression of the links to the output of a job of a sweep, which no later start of the run opens."""

PLACE = r"(^|_)(folder|path|dir|file|root)$"
"""Regular expression of the last key of settings that are places."""

WEIGHTS = "pretrained_model_name_or_path"
"""Key of the place of pretrained weights, which are only read; `config.accepted_targets` has the accepted places."""

OF_OUTPUT = ("config.yaml", "images.json", "status.json", ".hydra")
"""Names in the folder of a run or of generated images, which another person may have written."""


def kept_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the saved overrides that are used to resume a run.

    None are used if one selects a choice in a config folder that the command does not name, because the others may be
    settings of this choice.
    """
    places = [CONF, *given_folders(sys.argv[1:])]
    if not all(_has_choices(override, places) for override in overrides):
        return []
    return [override for override in overrides if _is_kept(override)]


def print_left_out(folder: Path, overrides: Sequence[str]) -> None:
    """Log the names of the saved overrides that are not used to resume the run in a folder."""
    kept = kept_overrides(overrides)
    keys = dict.fromkeys(override_key(override) for override in overrides if override not in kept)
    if left_out := [key for key in keys if key not in ("hydra.searchpath", "sweep.name")]:
        logger.info(
            "%s was not recorded as a run of this user, so its overrides of these settings are left out: %s; type "
            "them again to use them.",
            folder,
            ", ".join(left_out),
        )


def _is_kept(text: str) -> bool:
    """Return whether a saved override is one setting that defines the result.

    Flags of Hydra are no overrides: --experimental-rerun would load a pickle, and --config-dir another config.
    """
    try:
        override = OverridesParser.create().parse_override(text)
        value = override.value()
    except (HydraException, RecursionError):
        return False
    if override.package is not None or override.is_sweep_override():
        return False
    settings = flatten(value, tuple(str(override.key_or_group).split(".")))
    if any(target.package not in trusted_packages() for target in foreign_targets(unflatten(settings))):
        return False
    return not any(_is_of_the_user(path) or _acts(path, value) for path, value in settings.items())


def _is_of_the_user(path: KeyPath) -> bool:
    return any(fnmatch.fnmatchcase(".".join(map(str, path)), pattern) for pattern in OF_THE_USER)


def _acts(path: KeyPath, value: Any) -> bool:
    """Return whether a value is a place, reads the machine by a resolver, or is an argument that a library acts on."""
    text = str(value)
    if path[-1] == WEIGHTS:
        return text not in (*HUB_NAMES, *trusted_packages())
    if "_args_" in path or ("autoencoder" in path[:-1] and path[-1] not in FROM_PRETRAINED):
        return True
    if value is not None and (re.search(PLACE, str(path[-1])) or ".".join(map(str, path)) in PATHS):
        return True  # a relative path would be one in the folder in which the command was typed
    return _reads(text) or any(is_outside(part, None) for part in re.split(r"[\s,\[\]{}'\":]+", text))


def _reads(text: str) -> bool:
    """Return whether a text may call a resolver, whose name may contain other interpolations."""
    return "${" in text and ":" in text


def is_plain(text: str) -> bool:
    """Return whether a saved override is one setting, and not a flag, that calls no resolver."""
    try:
        return not _reads(text) and not OverridesParser.create().parse_override(text).is_sweep_override()
    except (HydraException, RecursionError):
        return False


def _has_choices(override: str, places: Sequence[Path]) -> bool:
    """Return whether the choices that an override selects are in one of the config folders, if it selects any."""
    name = override_key(override).split("@")[0]
    is_name = re.fullmatch(r"[\w/]{1,80}", name)
    groups = [group for place in places if is_name and (group := place / name).is_dir()]
    names = unquote(override.partition("=")[2]).strip("[]").split(",") if groups else []
    choices = [name.strip() for name in names if name.strip() not in ("null", "")]
    return all(
        re.fullmatch(r"[\w-]{1,80}", choice) and any((group / f"{choice}.yaml").is_file() for group in groups)
        for choice in choices
    )


def is_outside(value: Any, folder: Path | None) -> bool:
    """Return whether a value is a path outside of a run folder and outside of this package.  folder: the run folder."""
    path = os.path.normpath(value) if isinstance(value, str) else ""
    if not isinstance(value, str) or not (os.path.isabs(value) or path.startswith(("~", "..", "file:"))):
        return False
    inside = (str(PACKAGE), *([str(folder)] if folder else []))
    return not any(path == place or path.startswith(place + os.sep) for place in inside)


def require_plain_folder(folder: Path) -> None:
    """Raise UserError if a run folder contains anything but its own folders and regular files.

    The run would write to the place of a link that leads out of the folder, writing to a FIFO may never end, and logs
    of any size would be read into the memory.
    """
    top = os.path.realpath(folder)
    for parent, folders, files in os.walk(top):
        for path in (os.path.join(parent, name) for name in (*folders, *files)):
            name = os.path.relpath(path, top)
            if os.path.islink(path) and (fnmatch.fnmatchcase(name, LINK_OF_WANDB) or re.fullmatch(LINK_OF_SLURM, name)):
                continue
            if os.path.islink(path) and not os.path.realpath(path).startswith(top + os.sep):
                raise UserError(
                    f"a run folder that was not recorded as a run of this user must not contain links out of it, got "
                    f"{path}; replace the link by its content to continue the run."
                )
            is_file = os.path.isfile(path) or not os.path.exists(path)  # of a temporary file that was removed meanwhile
            if not is_file and (not os.path.isdir(path) or path.endswith(NAMES_OF_FILES)):
                raise UserError(
                    "a run folder that was not recorded as a run of this user must contain regular files only, got "
                    f"{path}; remove it to continue the run."
                )
            if is_file and not path.endswith(NOT_READ_WHOLE) and _size(path) > memory_budget():
                raise UserError(
                    f"the logs in a run folder that was not recorded as a run of this user must have at most "
                    f"{gigabytes(memory_budget())}, got {path} with {gigabytes(_size(path))}; remove it to continue "
                    "the run."
                )


def _size(path: str) -> int:
    return os.stat(path).st_size if os.path.isfile(path) else 0


def require_plain_run_folder(arguments: Sequence[str]) -> None:
    """Apply `require_plain_folder` to hydra.run.dir and output_folder if another user may have written them.

    Hydra writes to the first one before the command starts, so that the later check is not enough.
    """
    for argument in arguments:
        if override_key(argument) in ("hydra.run.dir", "output_folder"):
            folder = Path(unquote(argument.partition("=")[2]))
            if any(os.path.lexists(folder / name) for name in OF_OUTPUT) and not is_recorded(folder):
                require_plain_folder(folder)


def require_plain_sweep_folder(folder: Path) -> None:
    """Apply `require_plain_folder` to the folder of a sweep, if it exists with runs that this user has not written."""
    runs = [path for path in folder.glob("[!.]*") if path.is_dir()] if folder.is_dir() else []
    if not all(map(is_recorded, runs)):
        require_plain_folder(folder)


def parts_of_run(saved: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
    """Return a flattened config without the settings OF_THE_USER and the callbacks of Lightning."""
    strange = {path[:2] for path, value in saved.items() if _is_strange_callback(path, value)}
    return {path: value for path, value in saved.items() if path[:2] not in strange and not _is_of_the_user(path)}


def with_places_of_user(
    saved: Mapping[KeyPath, Any], now: Mapping[KeyPath, Any], folder: Path
) -> tuple[dict[KeyPath, Any], list[str]]:
    """Return a saved config whose settings OF_THE_USER and paths are those of the command, and what was left out.

    saved, now: flattened configs of the run and of the command.  folder: run folder.
    """
    folder = Path(os.path.abspath(folder))
    of_run = parts_of_run(saved)
    result, left_out = dict[KeyPath, Any](), list[str]()
    for path, value in saved.items():
        if path not in of_run or _is_place(path, value, folder):
            if value != now.get(path) and path[0] != "run_folder":
                left_out.append(".".join(map(str, path)))
            if path in now:
                result[path] = now[path]
        else:
            result[path] = value
    return result | {path: value for path, value in now.items() if path[0] == "logger"}, left_out


def _is_place(path: KeyPath, value: Any, folder: Path) -> bool:
    """Return whether a setting is a path outside of the run folder."""
    name = str(path[-1]) if path else ""
    if name == WEIGHTS:
        return False
    if re.search(PLACE, name):
        is_inside = isinstance(value, str) and os.path.isabs(value) and not is_outside(value, folder)
        return value is not None and not is_inside
    return _names_outside(value, folder)


def _names_outside(value: Any, folder: Path) -> bool:
    if isinstance(value, dict):
        return any(_names_outside(child, folder) for child in value.values())
    if isinstance(value, list):
        return any(_names_outside(child, folder) for child in value)
    return is_outside(value, folder)


def _is_strange_callback(path: KeyPath, value: Any) -> bool:
    is_target = len(path) == 3 and path[0] == "callbacks" and path[2] == "_target_"
    return is_target and str(value).startswith("lightning.")  # code of other packages needs trust

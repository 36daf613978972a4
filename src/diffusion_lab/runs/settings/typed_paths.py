"""Paths in settings. A relative path is read from the folder in which it was typed, also when a run is resumed.

The config of a run contains absolute paths. Its overrides file contains the overrides as they were typed, and in its
first line, a comment, the folder in which they were typed.
"""

import contextlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.config.compose import command_name
from diffusion_lab.config.earlier_versions import current_overrides
from diffusion_lab.config.overrides import OVERRIDES_FILE, given_overrides, override_key, quote, unquote
from diffusion_lab.config.saved_files import read_saved
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.paths import CONF
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs.find import find_place, run_of

PATHS = (
    *(f"data{part}.{name}" for part in ("", ".store") for name in ("path", "image_root", "cache_folder")),
    *("data.condition_path", "data.pairs.path", "features.weights"),
)
"""Settings whose values are paths."""

PATHS_OR_NAMES = ("space.autoencoder.pretrained_model_name_or_path",)
"""Settings whose values are paths, or names on the Hugging Face hub if no such folder exists."""

RUNS = {"guide": "train", "classifier": "train_classifier", "init": None}
"""Settings that name a run -> the command of the run; None is the command that runs."""

_TYPED_IN = "# typed in "


def make_absolute(config: DictConfig) -> None:
    """Make all relative paths of a composed config absolute, from the current folder, in place."""
    for key in (*PATHS, *PATHS_OR_NAMES, *RUNS):
        value = _selected(config, key)
        if isinstance(value, str) and (path := _absolute(key, value, Path.cwd())) not in (None, value):
            with open_dict(config):
                OmegaConf.update(config, key, path)


def require_no_other_images(config: DictConfig) -> None:
    """Raise UserError if a place of images is given for a data set whose images are part of this package.

    A resumed run may have such a place, because the package may have been moved.
    """
    hydra = HydraConfig.get()
    choice = str(hydra.runtime.choices.get("data"))
    file = CONF / "data" / f"{choice}.yaml"
    if config.get("resume") or not file.is_file() or "${embedded:" not in file.read_text():
        return
    for override in given_overrides():
        if (key := override_key(override)) in ("data.path", "data.hub_name"):
            raise UserError(
                f"{key} must not be given for data={choice}, whose images are part of this package, got {override}; "
                "data=class_folders (one folder per class) or data=folder reads your own images, and data=NAME one of "
                "the sets on the Hugging Face hub."
            )


def _selected(config: DictConfig, key: str) -> Any:
    """Return the value of a key, or None if the config has no such key or cannot compute its value."""
    with contextlib.suppress(OmegaConfBaseException):
        return OmegaConf.select(config, key)
    return None


def _absolute(key: str, value: str, folder: Path) -> str | None:
    """Return the absolute path of a value of a setting that was typed in `folder`; None if the value is no path."""
    if value in ("", "null", "none") or "${" in value:
        return None
    path = os.path.abspath(folder / Path(value).expanduser())
    if key in PATHS or (key in PATHS_OR_NAMES and os.path.isdir(path)):
        return path
    if key in RUNS and folder == Path.cwd():
        with contextlib.suppress(UserError):  # the run reports the error
            place = find_place(key, value, run_of(RUNS[key] or command_name()))
            return str(place.checkpoint or place.folder)
    return path if key in RUNS and os.path.exists(path) else None


def with_absolute_paths(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return overrides that were typed in `folder` with absolute paths, for a command in another folder."""
    return [_with_absolute_path(override, folder) for override in overrides]


def _with_absolute_path(override: str, folder: Path) -> str:
    name, equals, value = override.partition("=")
    key = override_key(override)
    if not equals or key not in (*PATHS, *PATHS_OR_NAMES, *RUNS):
        return override
    path = _absolute(key, unquote(value), folder)
    return override if path in (None, unquote(value)) else f"{name}={quote(str(path))}"


def overrides_file(folder: Path) -> Path | None:
    """Return the file with the overrides of a run; None if there is none."""
    paths = (folder / OVERRIDES_FILE, folder / ".hydra" / OVERRIDES_FILE)
    return next((path for path in paths if path.is_file()), None)


def read_overrides(folder: Path) -> list[str]:
    """Return the saved overrides of a run, as a command in the current folder must be given them."""
    typed, typed_in = _read_typed(folder)
    return typed if typed_in is None or typed_in == Path.cwd() else with_absolute_paths(typed, typed_in)


def write_overrides(overrides: Sequence[str], folder: Path) -> None:
    """Write the overrides of a run and the folder in which they were typed.

    Overrides that the run already had remain as they were typed. If they were typed in another folder, the paths of the
    new overrides are made absolute.
    """
    typed, typed_in = _read_typed(folder) if (folder / OVERRIDES_FILE).is_file() else ([], None)
    typed_in = typed_in or Path.cwd()
    if typed_in != Path.cwd():
        as_typed = dict(zip(with_absolute_paths(typed, typed_in), typed, strict=True))
        absolute = with_absolute_paths(overrides, Path.cwd())
        overrides = [as_typed.get(override, override) for override in absolute]
    with atomic_file(folder / OVERRIDES_FILE) as partial:
        content = OmegaConf.to_yaml(OmegaConf.create(list(overrides)))
        partial.write_text(f"{_TYPED_IN}{json.dumps(str(typed_in))}\n{content}")


def _read_typed(folder: Path) -> tuple[list[str], Path | None]:
    """Return the saved overrides of a run as they were typed, and the folder in which they were typed if it is known.

    Raises UserError for a file that cannot be read.
    """
    file = overrides_file(folder)
    if file is None:
        return [], None
    content = read_saved(file, list, interpolations=True)
    found = re.match(rf"{_TYPED_IN}(.*)\n", file.read_text())
    with contextlib.suppress(ValueError, TypeError):
        return current_overrides(list(map(str, content))), Path(json.loads(found[1])) if found else None
    raise UserError(f"{file} must begin with the folder in which its overrides were typed, as a run writes it.")


def network_hint(folder: Path) -> str:
    """Return a hint at the overrides with which a run chose its network; "" if there are none."""
    given = [override for override in read_overrides(folder) if re.match(r"\+?(experiment|model)[=.]", override)]
    return f"; that run was started with {terminal_text(' '.join(given), 200)}" if given else ""

"""Config folders of other packages: `--config-dir FOLDER` or `hydra.searchpath=[FOLDER, ...]`.

Both are converted to the second form with absolute paths, so that a run can be resumed from any folder, and the
processes that a sweep starts find the same configs.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF, expanduser

KEY = "hydra.searchpath"

_FLAGS = ("--config-dir", "-cd")


def with_search_path(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which one override of hydra.searchpath names all given config folders.

    Raises UserError for a folder that does not exist, and for a file in it that has the name of a file in conf/.
    """
    others, folders = [], list[str]()
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        flag, equals, value = argument.partition("=")
        if flag in _FLAGS and (equals or remaining):
            folders.append(_absolute(value if equals else remaining.pop(0), "--config-dir"))
        elif flag.lstrip("+") == KEY:
            folders += [_absolute(folder, KEY) for folder in _list(argument)]
        else:
            others.append(argument)
    for folder in folders:
        _require_own_names(folder)
    if not folders:
        return others
    # Next to the other overrides: Hydra's parser does not accept overrides on both sides of a flag such as --cfg job.
    first = next((k for k, text in enumerate(others) if "=" in text and not text.startswith("-")), len(others))
    return [*others[:first], f"{KEY}=[{','.join(dict.fromkeys(map(_quoted, folders)))}]", *others[first:]]


def gives_search_path(arguments: Sequence[str]) -> bool:
    """Return whether the arguments name config folders, in one of the two ways."""
    return any(argument.partition("=")[0].lstrip("+") in (*_FLAGS, KEY) for argument in arguments)


def given_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the config folders that the arguments name.  Raises UserError as `with_search_path`."""
    overrides = [text for text in with_search_path(arguments) if text.startswith(f"{KEY}=")]
    return [Path(folder.removeprefix("file://")) for text in overrides for folder in _list(text)]


def search_path_overrides() -> list[str]:
    """Return the override of hydra.searchpath of the running command, if there is one, as a list."""
    return [argument for argument in sys.argv[1:] if argument.startswith(f"{KEY}=")]


def _absolute(folder: str, setting: str) -> str:
    """Return a folder with an absolute path, or an importable package (pkg://NAME) unchanged."""
    if folder.startswith("pkg://"):
        return folder
    path = expanduser(folder.removeprefix("file://")).absolute()
    if not path.is_dir():
        raise UserError(
            f"{setting} must be a folder of config groups, got {folder}, which does not exist (for a resumed run, "
            "--config-dir gives the new place of its folder)."
        )
    return f"file://{path}"


def _list(argument: str) -> list[str]:
    try:
        value = OverridesParser.create().parse_override(argument).value()
    except OverrideParseException:
        value = None
    if not isinstance(value, list):
        raise UserError(f"{KEY} must be a list of folders: {KEY}=[FOLDER], got {argument.partition('=')[2]}.")
    return [str(folder) for folder in value]


def _require_own_names(folder: str) -> None:
    """Raise UserError if Hydra would ignore a file of a config folder, because conf/ has a file with the same name."""
    root = Path(folder.removeprefix("file://"))
    for path in sorted(root.rglob("*.yaml")) if folder.startswith("file://") else ():
        name = path.relative_to(root)
        if (CONF / name).is_file() and CONF not in path.parents:
            group, _, choice = str(name.with_suffix("")).rpartition("/")
            setting = f"{group}={choice}" if group else str(name)
            raise UserError(
                f"{path} has the name of a file of Diffusion Lab ({setting}), which Hydra would read instead; rename "
                "it."
            )


def _quoted(folder: str) -> str:
    return folder if re.fullmatch(r"[\w./:~+-]+", folder) else f"'{folder}'"

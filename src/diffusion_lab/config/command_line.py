"""Conversion of typed command lines to arguments that Hydra parses.

Hydra's grammar rejects many paths, and its messages name tokens of the grammar. Here a value that the grammar rejects
is taken literally, and every other argument that Hydra would reject raises an error that shows the right form.
"""

import itertools
import re
from collections.abc import Sequence
from itertools import pairwise

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.bare_words import is_path, naming_runs, own_images
from diffusion_lab.config.documentation import settings
from diffusion_lab.config.overrides import quote, without_alias
from diffusion_lab.config.search_path import gives_search_path
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF, ROOT, expanduser

FLAGS_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p"),
    *("--info", "-i", "--experimental-rerun"),
)
FLAGS = (*FLAGS_WITH_VALUE, "--multirun", "-m", "--resolve", "-r", "--run", "--version", "--hydra-help")
"""Flags of Hydra."""

ACTIONS = {"--multirun": "-m", "-m": "-m", "--run": "--run", "--cfg": "--cfg", "-c": "--cfg"}
ACTIONS |= {"--info": "--info", "-i": "--info"}
"""Flags of Hydra that exclude each other, with one name for each action."""

DISABLED_BY_NULL = ("callbacks", "logger")
"""Nodes whose entries are disabled by null, so that ~callbacks.NAME means callbacks.NAME=null."""

REQUIRED_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")

PATHS = ("data.path", "data.image_root", "data.condition_path", "data.cache_folder", "features.weights")
"""Settings whose values are paths."""

EMPTY = ("null", "none", "false", "~", "")
"""Values that stand for "no choice" where a group has no choice with this name."""


def as_hydra_arguments(command: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command for Hydra.  Raises UserError for an argument that is no flag and no setting."""
    if any(re.match(r"(--shell-completion|-sc)(=|$)", argument) for argument in arguments):
        return list(arguments)
    is_sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    own = OmegaConf.load(CONF / f"{command}.yaml")
    if is_sweep and OmegaConf.select(own, "hydra.run"):  # in contrast to the folders of _command.yaml
        raise UserError(f"{command} must be given without -m, because it shows everything at once.")
    known = _Known(command, has_others=gives_search_path(arguments))
    flags, others = _split_flags(arguments)
    _require_one_action(flags)
    for flag, value in pairwise(flags):
        if flag in ("--cfg", "-c") and value not in ("job", "hydra", "all"):
            raise UserError(f"--cfg must be followed by job, hydra or all, got {value}.")
    for_sweeps = [argument for argument in others if re.match(r"\+?hydra[/.](launcher|sweeper)", argument)]
    shows_config = any(flag.partition("=")[0] in ("--cfg", "-c", "--info", "-i") for flag in flags)
    if for_sweeps and not is_sweep and not shows_config:
        raise UserError(f"hydra/launcher and hydra/sweeper must be given with -m, got {for_sweeps[0]} without -m.")
    result = list[str]()
    for k, argument in enumerate(others):
        _require_form(argument, others[:k], others[k + 1 :], known)
        result += _override(argument, known, is_sweep=is_sweep)
    return [*flags, *result]


def _require_one_action(flags: Sequence[str]) -> None:
    """Raise UserError if several flags determine what the command does, which Hydra rejects."""
    given = [flag for flag in flags if flag.partition("=")[0] in ACTIONS]
    if len({ACTIONS[flag.partition("=")[0]] for flag in given}) > 1:
        raise UserError(
            f"only one of -m (a sweep), --run, --cfg and --info can be given, got {' and '.join(given)}; --cfg and "
            "--info show the config of a single run: leave out -m, and give one value of each swept setting."
        )


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the flags of Hydra first, because its parser rejects overrides on both sides of a flag."""
    flags, others = _split_flags(arguments)
    return [*flags, *others]


def _split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags of Hydra with their values, and all other arguments."""
    flags, others, remaining = list[str](), list[str](), list(arguments)
    while remaining:
        argument = remaining.pop(0)
        flag = argument.partition("=")[0]
        if flag not in FLAGS:
            others.append(argument)
            continue
        has_value = flag in FLAGS_WITH_VALUE and "=" not in argument and bool(remaining)
        flags += [argument, *([remaining.pop(0)] if has_value else [])]
    return flags, others


class _Known:
    """The groups and settings that a command names, read from its main config file."""

    def __init__(self, command: str, *, has_others: bool) -> None:
        self.command = command
        self.has_others = has_others  # whether config folders of other packages may define further nodes
        self.settings = settings(CONF / f"{command}.yaml", "")
        config = OmegaConf.load(CONF / f"{command}.yaml")
        self.nodes, entries = [str(key) for key in config], config.defaults
        self.defaults = {str(key): entry[key] for entry in entries if isinstance(entry, DictConfig) for key in entry}

    def is_known(self, name: str) -> bool:
        """Return whether `name` is a setting of the command or a config group."""
        return name in self.settings or (CONF / name).is_dir()

    def has_node(self, name: str) -> bool:
        """Return whether the first part of a setting's name is a node of the command's config."""
        node = re.split(r"[.@/]", name)[0]
        return (
            self.has_others
            or node in self.nodes
            or (CONF / node).is_dir()
            or any(key.startswith(f"{node}.") for key in self.settings)
        )

    @property
    def has_data(self) -> bool:
        """Whether the command reads a data set that the config group `data` selects."""
        return "data" in self.defaults

    def may_be_null(self, group: str) -> bool:
        return self.defaults.get(group, "") is None


def _require_form(argument: str, preceding: Sequence[str], following: Sequence[str], known: _Known) -> None:
    """Raise UserError unless an argument has the form NAME=VALUE or ~NAME."""
    name, equals, value = argument.partition("=")
    rest = list(following)
    if argument.startswith("-"):
        given = value if equals else _next_value(rest)
        name = name.lstrip("-").replace("-", "_")
        typed = f"{argument} {given}" if given and not equals else argument
        raise UserError(f"settings are given as NAME=VALUE: {name}={given or 'VALUE'}, got {typed}.")
    if equals and name and value == "" and rest and "=" not in rest[0] and not rest[0].startswith(("-", "~")):
        raise UserError(f"settings have no space after =: {name}={rest[0]}, got {argument} {rest[0]}.")
    if not equals and rest and rest[0].startswith("="):
        given = rest[0][1:] or _next_value(rest[1:])
        typed = " ".join([argument, *rest[: 1 if rest[0][1:] or not given else 2]])
        raise UserError(f"settings have no spaces around =: {argument}={given or 'VALUE'}, got {typed}.")
    if (not equals and not argument.startswith("~")) or not re.fullmatch(r"[+~]*[\w./@:-]+", name):
        if named_runs := naming_runs(known.command, known.nodes, argument, preceding, following):
            raise UserError(f"settings are given as NAME=VALUE: {named_runs}.")
        groups = [path.parent.name for path in sorted(CONF.glob("*/*.yaml")) if path.stem == argument]
        named = f"{argument}=VALUE" if re.fullmatch(r"[\w./]+", argument) else ""
        if is_path(argument):
            named = own_images(argument) if known.has_data else ""
        hint = " or ".join(f"{group}={argument}" for group in groups) or named
        is_value = (
            bool(preceding)
            and not is_path(argument)
            and not argument.startswith("+")
            and (not groups or preceding[-1].endswith(","))
        )
        if is_value and re.match(r"[\w./]+=.", preceding[-1]):
            others = itertools.takewhile(lambda word: "=" not in word and not word.startswith(("-", "~")), following)
            typed = " ".join([preceding[-1], argument, *others])
            if preceding[-1].endswith(","):
                raise UserError(f"values have no space after the comma: {preceding[-1]}{argument}, got {typed}.")
            raise UserError(f"a setting whose value has spaces must be quoted: '{typed}', got {typed}.")
        raise UserError(
            f"settings are given as NAME=VALUE{': ' * bool(hint)}{hint}, got {argument or 'an empty argument'}."
        )


def _next_value(arguments: Sequence[str]) -> str:
    return arguments[0] if arguments and "=" not in arguments[0] and not arguments[0].startswith("-") else ""


def _override(argument: str, known: _Known, *, is_sweep: bool) -> list[str]:
    """Return the override of Hydra that an argument means; an empty list if the argument changes nothing.

    Raises UserError for a deletion or an empty choice.
    """
    argument = without_alias(argument)
    name, _, value = argument.partition("=")
    if argument.startswith("~"):
        node = name[1:].partition(".")[0]
        if "." in name and node in DISABLED_BY_NULL:
            return [f"{name[1:]}=null"]
        if known.may_be_null(name[1:]):
            return []
        _refuse_empty(name[1:], "~", known)
        raise UserError(f"settings cannot be deleted; {name[1:]}=null or another value replaces it, got {argument}.")
    if name == "+callbacks" and value:
        return [f"callbacks=[default,{value}]"]  # Hydra rejects +GROUP=CHOICE if the group has a choice
    if name.startswith("+") and known.is_known(name.lstrip("+")):
        name = name.lstrip("+")
    if name.startswith("+") and not known.has_node(name.lstrip("+")):
        raise UserError(f"+ must be followed by the name of a node of the config, such as +model.NAME, got {argument}.")
    if name in REQUIRED_FOLDERS and not value.strip():
        raise UserError(f"{name} must be a writable folder, got no value.")
    if (CONF / name).is_dir():
        if value.startswith("[") and not value.endswith("]"):
            raise UserError(f"the list of {name} needs a closing bracket: '{name}={value}]', got {value}.")
        if value.lower() in EMPTY:
            _refuse_empty(name, value, known)
        if value.lower() in ("null", ""):
            return []
        if isinstance(_parsed(value), (bool, int, float)):
            value = quote(value)  # Hydra accepts only strings as choices
        if name == "data" and known.has_data and is_path(value):
            raise UserError(f"data must be the name of a data set, got the path {value}; use {own_images(value)}.")
    if name in PATHS and isinstance(_parsed(value), (bool, int, float)):
        value = quote(value)  # a folder whose name is a number
    if name.startswith("hydra.launcher.") and "," in value and isinstance(_parsed(value), ChoiceSweep):
        return [f"{name}={quote(value)}"]  # settings of Hydra cannot be swept
    return [f"{name}={_value(value, is_sweep=is_sweep and not name.startswith('hydra.'))}"]


def _refuse_empty(name: str, value: str, known: _Known) -> None:
    """Raise UserError if `name` is a config group that must have a choice, and none of its choices is `value`."""
    choices = [path.stem for path in sorted((CONF / name).glob("[!_]*.yaml"))]
    if not choices or value in choices or known.may_be_null(name):
        return
    hint = f"; use {name}=none" if "none" in choices else ""
    hint = f"; {name}=csv writes metrics.csv only" if name == "logger" else hint
    given = f"~{name}" if value == "~" else value or "no value"
    raise UserError(f"{name} must be one of {', '.join(choices)}, got {given}{hint}.")


def _value(value: str, *, is_sweep: bool) -> str:
    """Return a value that Hydra's grammar accepts: unchanged if possible, otherwise quoted.

    The name of an existing file that has a special meaning in the grammar, such as a,b or [a], is quoted as well. In
    a list, and in the comma-separated values of a sweep, each item is quoted separately.
    """
    parsed = _parsed(value)
    if parsed is not None and (isinstance(parsed, (str, bool, int, float)) or not _exists(value)):
        return value
    if parsed is None and not _exists(value):
        items = _split(value)
        if is_sweep and len(items) > 1:
            return ",".join(_value(item, is_sweep=False) for item in items)
        if len(items) == 1 and value.startswith("[") and value.endswith("]") and len(value) > 2:
            return f"[{','.join(_value(item, is_sweep=False) for item in _split(value[1:-1]))}]"
    return quote(value)


def _split(text: str) -> list[str]:
    """Split a text at the commas that are outside of quotes, brackets, braces and parentheses."""
    parts, depth, quoted = [""], 0, ""
    for character in text:
        if quoted or character in "'\"":
            quoted = "" if character == quoted else quoted or character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _parsed(value: str) -> object:
    """Return the value that Hydra's grammar reads from a text, or None if the grammar rejects the text."""
    try:
        parsed = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return None
    return "null" if parsed is None else parsed


def _exists(value: str) -> bool:
    """Return whether a value is the name of an existing file or folder."""
    try:
        return bool(value) and any(path.exists() for path in (expanduser(value), ROOT / value))
    except (OSError, ValueError):  # such as a name that is too long
        return False

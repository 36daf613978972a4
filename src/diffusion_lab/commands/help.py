"""Help texts of the commands: `COMMAND --help`, and `COMMAND --help GROUP` for the choices of a config group.

The texts consist of the docstring of the command's module and of the comments in conf/. Hydra composes the config, so
that exactly the groups that the command accepts are listed.
"""

import ast
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from diffusion_lab.config.documentation import Setting, group_lines, header, selected_model, settings, summary, target
from diffusion_lab.config.program import as_typed, command_line
from diffusion_lab.config.search_path import KEY, with_search_path
from diffusion_lab.config.validation import suggestion
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF

FLAGS = ("--help", "-h")

NAME_WIDTH = 18
"""Width of the column with names of groups and defaults in the help text."""

USAGES = {"sweep": "status SWEEP_FOLDER", "import_weights": "FILE_OR_FOLDER [NAME=VALUE ...] [GROUP=CHOICE ...]"}
"""Arguments of the commands that take more than settings and choices."""

COMPUTED = {"posterior": "ddrm with sampler=ddim, else pigdm"}
"""Config groups whose default choice depends on other settings, and this choice."""

WITHOUT_CONFIG = ("sweep",)
"""Commands that are not configured by Hydra."""


def print_help(command: str, arguments: Sequence[str]) -> bool:
    """Print the help text that the command-line arguments request; return whether they request one."""
    if (topic := requested_topic(arguments)) is None:
        return False
    search_path = [argument for argument in with_search_path(arguments) if argument.startswith(f"{KEY}=")]
    print(help_text(command, topic, search_path))
    if note := combination_note(command, arguments):
        print(f"\n{note}")
    return True


def combination_note(command: str, arguments: Sequence[str]) -> str:
    """Return how to see the values of a complete command, if the arguments contain more than the topic of the help."""
    overrides = [word for word in arguments if re.match(r"[+~]*[\w./@]+=", word) and not word.startswith(KEY)]
    if len(overrides) < 2 or command in WITHOUT_CONFIG:
        return ""
    return f"{shlex.join([*command_line(command).split(), *overrides])} --cfg job shows the values of this combination."


def requested_topic(arguments: Sequence[str]) -> str | None:
    """Return the argument after --help or -h, "" if there is none, and None if help is not requested."""
    for k, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in FLAGS:
            following = [value] if equals else [text for text in arguments[k + 1 : k + 2] if not text.startswith("-")]
            return following[0] if following else ""
    return None


def help_text(command: str, topic: str = "", search_path: Sequence[str] = ()) -> str:
    """Return the help text of a command.

    topic: "" for the command itself, a config group, a choice of a group (GROUP=CHOICE), or a setting.
    search_path: overrides of hydra.searchpath, for the choices of other packages.
    Raises UserError if the command has no such group, choice or setting.
    """
    if command in WITHOUT_CONFIG:
        return _introduction(command)
    groups = _accepted_groups(command, list(search_path))
    own = settings(CONF / f"{command}.yaml", "")
    if not topic:
        return _command_help(command, own, groups)
    group, _, choice = topic.partition("=")
    if group in groups:
        paths = groups[group][1]
        if not choice:
            return _group_help(command, group, paths)
        if choice in paths:
            return _choice_help(group, choice, paths[choice])
        raise UserError(f"{group} must be one of {', '.join(paths)}, got {choice}{suggestion(choice, list(paths))}.")
    if found := {key: setting for key, setting in own.items() if key == topic or key.startswith(f"{topic}.")}:
        return "\n".join(_table(found.values()))
    known = [*groups, *own]
    raise UserError(f"--help must be followed by a config group or a setting of {command_line(command)} "
                    f"({', '.join(known)}), got {topic}{suggestion(topic, known)}.")  # fmt: skip


def _accepted_groups(command: str, overrides: list[str]) -> dict[str, tuple[str, dict[str, Path]]]:
    """Return the selected choice and the files of all choices of each config group that a command accepts."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(command, overrides=overrides, return_hydra_config=True)
        of_classifiers = hydra.compose("train_classifier") if config.get("model") is not None else None
    folders = [_folder(source) for source in config.hydra.runtime.config_sources if source.provider != "hydra"]
    selected = {str(group): choice for group, choice in config.hydra.runtime.choices.items()}
    for group in map(str, config):
        if (
            group not in selected and (CONF / group).is_dir() and config[group] is not None
        ):  # a list of choices, such as metrics: [fid]
            selected[group] = ",".join(map(str, config[group]))
    order = [group for group in group_lines() if group in selected]
    own = sorted(group for group in selected if group not in order and not group.startswith("hydra/"))
    accepted = {group: _choices(group, folders) for group in [*order, *own]}
    if of_classifiers is not None:
        _keep_trained(command, accepted, of_classifiers.model._target_)
    shown = {group: "" if str(choice).startswith("_") else str(choice or "") for group, choice in selected.items()}
    return {group: (shown[group], paths) for group, paths in accepted.items() if paths}


def _folder(source: DictConfig) -> Path:
    """Return the folder of an entry of Hydra's search path."""
    return Path(str(files(source.path.replace("/", ".")))) if source.schema == "pkg" else Path(source.path)


def _choices(group: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Return the files of the choices of a group, by name, except those that commands select by default."""
    return {path.stem: path for folder in folders for path in sorted((folder / group).glob("[!_]*.yaml"))}


def _keep_trained(command: str, accepted: dict[str, dict[str, Path]], classifier: str) -> None:
    """Remove the models, and the experiments with models, that the command does not train.

    classifier: `_target_` of the models that only the command train_classifier trains.
    """
    classifiers = {name for name, path in accepted["model"].items() if target(path) == classifier}
    for group in ("model", "experiment"):
        for name, path in list(accepted.get(group, {}).items()):
            model = name if group == "model" else selected_model(path)
            if (model in classifiers) != (command == "train_classifier"):
                del accepted[group][name]


def _command_help(command: str, own: Mapping[str, Setting], groups: Mapping[str, tuple[str, Any]]) -> str:
    """Return the help text of a command: purpose, usage, examples, results, settings and config groups."""
    lines = [_introduction(command), "", "settings (NAME=VALUE):", *_table(own.values())]
    if groups:
        lines += ["", "config groups (GROUP=CHOICE) and the default choice:"]
        descriptions = group_lines()
        for group, (selected, choices) in groups.items():
            default = selected or COMPUTED.get(group) or ("as in the run" if "run" in own else "none")
            text = f"{descriptions.get(group, '')} [{default}]".strip()
            lines += [*_wrapped(f"  {group:<{NAME_WIDTH}}", text), *_columns(list(choices))]
        lines += ["", *_wrapped("", f"{command_line(command)} --help GROUP describes the choices of a group, --help "
                  "GROUP=CHOICE the settings of a choice. All settings of a choice are accepted as GROUP.NAME=VALUE; "
                  "--cfg job prints all settings, --hydra-help describes the flags of Hydra.")]  # fmt: skip
    return "\n".join(lines)


def _introduction(command: str) -> str:
    """Return purpose, usage, examples and the remarks on results and resuming, from the docstring of the module."""
    source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    purpose, *lines = str(ast.get_docstring(ast.parse(source))).splitlines()
    examples = [f"  {as_typed(line)}" for line in lines if re.match(r"python |torchrun ", line)]
    remarks = [line for line in lines if line and f"  {as_typed(line)}" not in examples]
    usage = USAGES.get(command, "[NAME=VALUE ...] [GROUP=CHOICE ...]")
    text = [f"Diffusion Lab: {purpose[0].lower()}{purpose[1:]}", "", f"usage: {command_line(command)} {usage}"]
    return "\n".join([*text, "", "examples:", *examples, *([""] if remarks else []), *remarks])


def _group_help(command: str, group: str, paths: Mapping[str, Path]) -> str:
    """Return the choices of a group with one line each, and the names of their settings."""
    lines = [f"{group}: {group_lines().get(group, 'config group of another package')}", "",
             f"usage: {command_line(command)} {group}=CHOICE", ""]  # fmt: skip
    width = max(map(len, paths))
    for choice, path in paths.items():
        names = [f"{key}={setting.default}" for key, setting in settings(path, group.replace("/", ".")).items()]
        lines += _wrapped(f"  {choice:<{width}}  ", summary(path))
        lines += _wrapped(f"  {'':<{width}}  ", "  ".join(name for name in names if not name.endswith("=computed")))
    return "\n".join(lines).rstrip()


def _choice_help(group: str, choice: str, path: Path) -> str:
    """Return the header of a choice's file and a table of its settings."""
    own = settings(path, group.replace("/", "."))
    return "\n".join([f"{group}={choice}", "", *header(path), *([""] if own else []), *_table(own.values())])


def _table(rows: Iterable[Setting]) -> list[str]:
    """Return one or more lines per setting: name, default value and meaning in columns."""
    rows = list(rows)
    name = min(max((len(row.key) for row in rows), default=0), 2 * NAME_WIDTH)
    default = min(max((len(row.default) for row in rows), default=0), NAME_WIDTH)
    return [
        line
        for row in rows
        for line in _wrapped(f"  {row.key:<{name}}  {row.default:<{default}}  ", row.meaning, name + default + 6)
    ]


def _columns(names: Sequence[str]) -> list[str]:
    """Return names in columns of equal width."""
    indent, width = 4, max(map(len, names)) + 2
    per_line = max(1, (_width() - indent) // width)
    rows = [names[k : k + per_line] for k in range(0, len(names), per_line)]
    return [" " * indent + "".join(f"{name:<{width}}" for name in row).rstrip() for row in rows]


def _wrapped(start: str, text: str, indent: int | None = None) -> list[str]:
    """Return `start` and `text` in lines of the terminal's width; further lines are indented."""
    following = " " * (len(start) if indent is None else indent)
    wrapper = textwrap.TextWrapper(
        _width(), initial_indent=start, subsequent_indent=following, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(text) or [start.rstrip()] * bool(start.strip())


def _width() -> int:
    return max(60, min(120, shutil.get_terminal_size((120, 24)).columns))

"""Documentation in the YAML files in conf/: header comments, and settings with their defaults and comments.

Help texts are built from these comments, so that they cannot differ from the files that Hydra reads.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from omegaconf import OmegaConf

from diffusion_lab.paths import CONF


@dataclass(frozen=True)
class Setting:
    """A setting in a config file.

    key: full name, such as "schedule.num_timesteps".  default: its value as text.  meaning: its comment.
    """

    key: str
    default: str
    meaning: str


def group_lines() -> dict[str, str]:
    """Return the description of each config group of this package, by name."""
    lines = OmegaConf.to_container(OmegaConf.load(CONF / "_groups.yaml"))
    assert isinstance(lines, dict)
    return {str(group): str(line) for group, line in lines.items()}


def header(path: Path) -> list[str]:
    """Return the comment lines at the start of a config file, without the leading "# "."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return [line.removeprefix("#").removeprefix(" ") for line in lines if not line.startswith("# @package")]


def summary(path: Path) -> str:
    """Return the first line of a file's header, which describes the choice and names its source."""
    return header(path)[0].rstrip(".") if header(path) else ""


def settings(path: Path, prefix: str) -> dict[str, Setting]:
    """Return the settings of a config file that have a comment, by their full names, in the order of the file.

    The settings of shared files, whose names start with an underscore, are included, and for a file of another package
    also the settings without a comment.
    prefix: package of the file, such as "schedule"; "" for a main config file. A line "# @package" in the file replaces
        the prefix.
    """
    text = path.read_text(encoding="utf-8")
    if package := re.match(r"# @package (\S+)", text):
        prefix = "" if package[1] == "_global_" else package[1]
    found: dict[str, Setting] = {}
    for shared, package_of_shared in _shared_files(text, path, prefix):
        found |= settings(shared, package_of_shared)
    for setting in _entries(text.splitlines(), prefix):
        if setting.meaning:
            found[setting.key] = setting
        elif setting.key in found:  # another value of a setting that a shared file describes
            found[setting.key] = replace(found[setting.key], default=setting.default)
        elif CONF not in path.parents and not setting.key.rpartition(".")[2].startswith("_"):
            found[setting.key] = setting
    return found


def target(path: Path) -> str | None:
    """Return the `_target_` of the object that a config file describes; None if there is none."""
    text = path.read_text(encoding="utf-8")
    if own := re.search(r"^_target_: (\S+)", text, re.MULTILINE):
        return own[1]
    return next(filter(None, (target(shared) for shared, _ in _shared_files(text, path, ""))), None)


def selected_model(path: Path) -> str | None:
    """Return the model that an experiment selects; None if it selects none."""
    found = re.search(r"override /model: (\w+)", path.read_text(encoding="utf-8"))
    return found[1] if found else None


def _shared_files(text: str, path: Path, prefix: str) -> Iterator[tuple[Path, str]]:
    """Yield the shared and the main config files in the defaults list of a config file, with their packages."""
    for name, package in re.findall(
        r"(?:^  - |\[|, )/?(_\w+|(?<=^  - )\w+)(?:@([\w.]+))?(?=$|,|\]| #)", text, re.MULTILINE
    ):
        files = [folder / f"{name}.yaml" for folder in (CONF, path.parent) if (folder / f"{name}.yaml").is_file()]
        if files and not package.startswith("_global_."):
            yield files[0], prefix if package in ("", "_here_") else ".".join(filter(None, [prefix, package]))


def _entries(lines: list[str], prefix: str) -> Iterator[Setting]:
    """Yield the settings of a YAML file with their values and comments, except those of Hydra itself."""
    parents: list[tuple[int, str]] = []  # indentation and key of the enclosing nodes
    for line in lines:
        found = re.match(r"( *)([\w/@]+):(?: +(?!#)(.*?))?(?: +# (.*))?$", line)
        if found is None:
            continue
        indent, key, value, comment = len(found[1]), found[2], found[3] or "", found[4] or ""
        parents = [*(parent for parent in parents if parent[0] < indent), (indent, key)]
        names = [name for _, name in parents]
        if value and names[0] not in ("defaults", "hydra"):
            yield Setting(".".join(filter(None, [prefix, *names])), _readable(value), comment)


def _readable(value: str) -> str:
    """Return a default value as a user reads it: references to other settings are replaced by words."""
    value = re.sub(r"\$\{root:(\w+)\}", r"\1", value).replace("${hydra:runtime.output_dir}", "run folder")
    if value == "???":
        return "required"
    if reference := re.fullmatch(r"\$\{([a-z][\w.]*)\}", value):
        return f"as {reference[1]}"
    return "computed" if "${" in value else value

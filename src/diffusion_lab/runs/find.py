"""The rule by which settings such as `run`, `resume`, `guide` and `numbers` name run folders and checkpoints.

Accepted are a folder, a checkpoint file in it, a folder of such folders (a sweep), a glob pattern, and `last` for the
newest folder in the logs folder. A relative path is searched in the working directory, in the folder that contains
logs/, in the logs folder and in the folders of the commands in it: logs/train/RUN, train/RUN and RUN name the same run.
Also searched is logs/ in the working directory, to which scripts in other folders may have written.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.overrides import quote, unquote
from diffusion_lab.config.program import command_line
from diffusion_lab.errors import UserError
from diffusion_lab.paths import IS_CHECKOUT, LOGS_VARIABLE, ROOT, logs_folder
from diffusion_lab.reporting.text import shell_text
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.run_checkpoints import find_checkpoints
from diffusion_lab.runs.without_results import why_no_results, why_no_run

LAST = "last"  # the value of a setting that names the newest folder

_OTHER_LOGS = f"the environment variable {LOGS_VARIABLE} (or logs=FOLDER of a command) names another logs folder"


@dataclass(frozen=True)
class Kind:
    """A kind of folder that settings name.

    noun: name of the kind, for error messages.
    files: glob patterns, relative to the folder; every folder of this kind contains a file that matches one of them.
    others: names of files that no folder of this kind contains.
    has_checkpoints: whether `last` is a folder without checkpoints only if no folder has any.
    commands: folders in the logs folder that are searched for `last`, and first for a name without a path.
    part: what in such a folder also names the folder, for error messages.
    """

    noun: str
    files: tuple[str, ...]
    commands: tuple[str, ...]
    part: str = "checkpoint file"
    others: tuple[str, ...] = ()
    has_checkpoints: bool = False

    def is_one(self, folder: Path) -> bool:
        has_own = any(True for pattern in self.files for _ in folder.glob(pattern))
        return has_own and not any((folder / name).exists() for name in self.others)

    def age_rank(self, folder: Path) -> tuple[bool, float]:
        """Return a sort key by which `last` is the largest folder: by the time of its newest checkpoint or file.

        A run without checkpoints, which was stopped at its start, is older than any run with checkpoints.
        """
        checkpoints = [*folder.glob("checkpoints/*.ckpt")]
        files = checkpoints or [file for name in self.files for file in folder.glob(name)]
        return bool(checkpoints) and self.has_checkpoints, max(map(_time_written, files), default=0.0)

    def existing(self, commands: tuple[str, ...], logs: Path) -> list[Path]:
        """Return all folders of this kind in the folders of some commands in a logs folder, and in their sweeps."""
        found = (folder for name in commands for depth in ("*", "*/*") for folder in (logs / name).glob(depth))
        return [folder for folder in found if self.is_one(folder)]


def _time_written(file: Path) -> float:
    """Return when a file was written; 0 if another process has removed it in the meantime."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def run_of(command: str) -> Kind:
    """Return the kind of the run folders of a command."""
    # Hydra writes hydra.yaml next to its own config.yaml, in the folder .hydra of a run folder.
    return Kind("run folder", ("config.yaml",), (command,), others=("hydra.yaml",), has_checkpoints=True)


MEASURED = Kind("folder with a metrics.json", ("**/metrics.json", "**/summary.json"), ("evaluate", "train", "edit"))
SWEEP = Kind("sweep folder", ("*/status.json",), ("train", "train_classifier", "evaluate", "sample", "edit"), "run")
SWEEP_FILES = ("multirun.yaml", "search.db")
"""Names of the files that Hydra and a search write to the folder of a sweep."""


class Place(NamedTuple):
    """A folder that a setting names, and its checkpoint file if the setting names one."""

    folder: Path
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Target:
    """A checkpoint file of a run, whose network is sampled or evaluated."""

    folder: Path
    checkpoint: Path

    @property
    def name(self) -> str:
        """Name of the run, followed by the name of the checkpoint unless it is last.ckpt."""
        is_last = self.checkpoint.name == "last.ckpt"
        return self.folder.name if is_last else f"{self.folder.name}_{self.checkpoint.stem}"


def find_targets(config: DictConfig) -> list[Target]:
    """Return the checkpoints that the settings `run` and `checkpoint` of a config select.

    Raises UserError if `run` is not given, if no run folder matches, or if a run has no matching checkpoint.
    """
    value, name = None if OmegaConf.is_missing(config, "run") else config.run, str(config.checkpoint)
    targets = []
    for folder, checkpoint in find_places("run", value, run_of("train")):
        if checkpoint is not None and name not in ("last.ckpt", checkpoint.name):
            raise UserError(f"`checkpoint` must not be given if `run` is a checkpoint file, got {name}.")
        files = _find_checkpoints(folder, name) if checkpoint is None else [checkpoint]
        targets += [Target(folder, file) for file in files]
    return targets


def find_run(setting: str, value: Any, command: str = "train", checkpoint: str | None = None) -> Target:
    """Return the checkpoint that a setting names.

    setting: name of the setting, for error messages.  command: command of the runs that the setting names.
    checkpoint: file name of the checkpoint; None selects the file that `value` names or, for a run folder, last.ckpt.
    Raises UserError unless `value` names one run with this checkpoint.
    """
    folder, given = find_place(setting, value, run_of(command))
    if given is not None and checkpoint is None:
        return Target(folder, given)
    return Target(folder, _find_checkpoints(folder, checkpoint or "last.ckpt")[0])


def find_place(setting: str, value: Any, kind: Kind) -> Place:
    """Return the only folder that the value of a setting names.  Raises UserError if it names none or several."""
    place, *others = find_places(setting, value, kind, several=False)
    if others:
        is_sweep = setting == "resume" and all(other.folder.parent == place.folder.parent for other in others)
        hint = "; the command that started a sweep also continues it" if is_sweep else ""
        raise UserError(
            f"`{setting}` must name one {kind.noun}, got {value}, which names {1 + len(others)}, such as "
            f"{place.folder} and {others[0].folder}{hint}."
        )
    return place


def find_places(setting: str, value: Any, kind: Kind, *, several: bool = True) -> list[Place]:
    """Return all folders that the value of a setting names.

    several: whether the error message offers folders of folders and glob patterns.
    Raises UserError if a value in `value`, which may be a list, names no folder of the kind.
    """
    values = list(value) if isinstance(value, (list, tuple)) or OmegaConf.is_list(value) else [value]
    given = [str(value) for value in values if value is not None and str(value)]
    if not given:
        raise UserError(f"`{setting}` must be {_accepted(kind, several=several)}, got no value.")
    return list(dict.fromkeys(place for text in given for place in _find(setting, text, kind, several=several)))


def _find(setting: str, value: str, kind: Kind, *, several: bool) -> list[Place]:
    if value == LAST:
        return [_newest(setting, kind)]
    for base, path in searched(value, kind):
        if places := _matching(base, path, kind):
            return places
    raise UserError(f"`{setting}` must be {_accepted(kind, several=several)}, got {value}, {_why_not(value, kind)}")


def _newest(setting: str, kind: Kind) -> Place:
    # Other logs folders are searched only if the logs folder in use has no folder of the kind.
    first, *others = _logs_folders()
    found = ([folder for logs in group for folder in kind.existing(kind.commands, logs)] for group in ([first], others))
    folders = next(filter(None, found), [])
    if not folders:
        places = " or ".join(str(logs / command) for logs in _logs_folders() for command in kind.commands)
        raise UserError(f"{setting}={LAST}: there is no {kind.noun} in {places}; {_OTHER_LOGS}.")
    return Place(max(folders, key=kind.age_rank))


def _logs_folders() -> list[Path]:
    """Return the logs folder, the default one if the logs were moved, and logs/ in the working directory."""
    return list(
        dict.fromkeys([logs_folder(), ROOT / "logs", *([here] if (here := Path.cwd() / "logs").is_dir() else [])])
    )


def searched(value: str, kind: Kind) -> Iterator[tuple[Path, str]]:
    """Yield each folder in which a value is searched, with the path or glob pattern that is searched in the folder."""
    path = os.path.expanduser(value)
    if os.path.isabs(path):
        yield Path("/"), path
        return
    yield Path.cwd(), path
    yield ROOT, path
    inside = path.removeprefix("logs/")
    for logs in _logs_folders():
        others = sorted(folder.name for folder in logs.glob("*") if folder.is_dir())
        yield logs, inside
        yield from ((logs / command, inside) for command in dict.fromkeys([*kind.commands, *others]))


def _matching(base: Path, path: str, kind: Kind) -> list[Place]:
    """Return the folders of a kind that a path or glob pattern in `base` names."""
    literal = Path(os.path.abspath(base / path))
    if os.path.exists(literal):  # Path.exists raises an error if the name is too long
        return _places_at(literal, kind) or _places_in(literal, kind)
    matches = [Path(os.path.abspath(base / match)) for match in sorted(glob.glob(path, root_dir=base))]
    places = [place for match in matches for place in _places_at(match, kind)]
    return places or [place for match in matches for place in _places_in(match, kind)]


def _places_at(path: Path, kind: Kind) -> list[Place]:
    is_checkpoint = path.suffix == ".ckpt" and path.is_file()
    folder, checkpoint = (path.parent.parent, path) if is_checkpoint else (path, None)
    if kind.is_one(folder):
        return [Place(folder, checkpoint)]
    is_in_sweep = any((folder.parent / name).is_file() for name in SWEEP_FILES)  # runs of other commands have a parent
    is_named = kind is SWEEP and is_in_sweep and (folder / "status.json").is_file()
    return [Place(folder.parent)] if is_named else []  # a run names its sweep


def _places_in(path: Path, kind: Kind) -> list[Place]:
    return [Place(child) for child in sorted(path.glob("*")) if kind.is_one(child)]


def _accepted(kind: Kind, *, several: bool) -> str:
    more = ", a folder of several, a glob pattern" if several else ""
    return f"a {kind.noun}, a {kind.part} in it{more} or {LAST}"


def _why_not(value: str, kind: Kind) -> str:
    """Return the reason why a value names no folder of a kind, for the end of an error message."""
    found = next((base / path for base, path in searched(value, kind) if os.path.exists(base / path)), None)
    if found is not None and kind is SWEEP and (status := run_status.observe(found)):
        hint = f"; `{command_line('compare')} numbers={shell_word(portable_path(found))}` prints its results"
        return f"which is a single run ({status.text}) and no sweep{hint if MEASURED.is_one(found) else ''}."
    if found is not None and found.suffix == ".ckpt" and found.is_file():
        return f"which is in no {kind.noun}; DiffusionModule.load_from_checkpoint loads checkpoints of a plain Trainer."
    if found is not None:
        reason = why_no_results(found) if kind is MEASURED else why_no_run(found)
        return f"which has no {kind.files[0].rpartition('/')[2]}{'; ' if reason else ''}{reason}."
    path = Path(value)
    if path.suffix == ".ckpt":
        for base, run in searched(str(path.parent.parent), kind):
            if kind.is_one(base / run):
                names = ", ".join(sorted(file.name for file in (base / run).glob("checkpoints/*.ckpt"))) or "no file"
                return f"but the checkpoints of this run are {names}."
    matches = "matches nothing" if glob.has_magic(value) else "does not exist"
    where, hint = "", _closest(path, kind)
    if not os.path.isabs(os.path.expanduser(value)):
        where = f" in {Path.cwd()} or below {' or '.join(map(str, _logs_folders()))}"
        hint = hint or f"; {_OTHER_LOGS}"
    return f"which {matches}{where}{hint}."


def _closest(path: Path, kind: Kind) -> str:
    """Return a hint with the existing folder whose name is closest to a path; "" if no name is close."""
    found = [kind.existing(tuple(place.name for place in logs.glob("*")), logs) for logs in _logs_folders()]
    existing = {folder.name: folder for folders in found for folder in folders}
    wanted = path.parent.parent.name if path.suffix == ".ckpt" else path.name
    close = get_close_matches(wanted, existing, n=1, cutoff=0.6)
    return f"; perhaps you mean {portable_path(existing[close[0]])}" if close else ""


def with_found_guides(arguments: Sequence[str], command: str = "train") -> list[str]:
    """Return the arguments of a command in which guide, classifier and init name a run and not `last`."""
    kinds = {"guide": run_of("train"), "classifier": run_of("train_classifier"), "init": run_of(command)}
    result = []
    for argument in arguments:
        name, _, value = argument.lstrip("+").partition("=")
        if name in kinds and unquote(value) == LAST:
            argument = f"{name}={quote(str(find_place(name, LAST, kinds[name]).folder))}"
        result.append(argument)
    return result


def portable_path(path: Path) -> str:
    """Return a path relative to the working directory if commands find it from any folder, else the absolute path."""
    full, cwd, logs = Path(os.path.abspath(path)), Path.cwd(), ROOT / "logs"
    is_found = IS_CHECKOUT and full.is_relative_to(logs) and (cwd in (ROOT, logs) or cwd.parent == logs)
    return str(full.relative_to(cwd)) if is_found and full.is_relative_to(cwd) else str(full)


def shell_word(path: str) -> str:
    """Return a path quoted for the shell and for Hydra, if it needs quotes."""
    return path if re.fullmatch(r"[\w./+-]+", path) else shell_text(quote(path))


def _find_checkpoints(folder: Path, name: str) -> list[Path]:
    return find_checkpoints(folder, name, shell_word(portable_path(folder)))

"""Paths and names of runs that are typed without the name of a setting, such as `compare.py A B`."""

import itertools
import os
import re
import shlex
from collections.abc import Container, Sequence
from pathlib import Path

from diffusion_lab.config.overrides import quote, unquote
from diffusion_lab.config.program import command_line
from diffusion_lab.paths import ROOT, expanduser, logs_folder

RUN_SETTINGS = ("numbers", "run", "resume")
"""Settings that name runs; a command has at most one of them."""

TAKING_LISTS = ("numbers", "run")

IN_RUNS = ("config.yaml", "checkpoints", "status.json", "metrics.json", "summary.json", "multirun.yaml")
"""Names of files and folders of which every run, evaluation or sweep folder has at least one."""


def naming_runs(
    command: str, nodes: Container[str], word: str, preceding: Sequence[str], following: Sequence[str]
) -> str | None:
    """Return how to type a word, and the words after it, as the setting that names runs; None if they name no run.

    nodes: top-level settings of the command.  preceding, following: arguments before and after the word. If the setting
    precedes the word, as in `run=A B` or `run A`, it is part of the words.
    Returns the text "TYPED RIGHT, got WORDS".
    """
    setting = next((name for name in RUN_SETTINGS if name in nodes), None)
    given = [word, *itertools.takewhile(lambda other: not re.match(r"[+~-]|[\w./@]+=", other), following)]
    runs = given[1:] if word == setting else given
    if setting is None or not runs or runs[0] in nodes or not _names_run(runs[0], setting):
        return None
    if preceding and preceding[-1].startswith(f"{setting}="):
        runs = [*preceding[-1].partition("=")[2].strip("[]").split(","), *runs]
        given = [preceding[-1], *given]
    runs = [text for text in (unquote(run.strip(",[]")) for run in runs) if text]
    items = [run if re.fullmatch(r"[\w./*+-]+", run) else quote(run) for run in runs]
    has_list = setting in TAKING_LISTS and len(items) > 1
    typed = f"{setting}=[{','.join(items)}]" if has_list else f"{setting}={items[0]}"
    return f"{command_line(command)} {shlex.quote(typed) if has_list else typed}, got {' '.join(given)}"


def is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~/")) or ("/" in text and os.path.isdir(expanduser(text)))


def own_images(folder: str) -> str:
    """Return the overrides that read the images of a folder."""
    return f"data=class_folders data.path={folder} (one folder per class) or data=folder data.path={folder}"


def _names_run(word: str, setting: str) -> bool:
    """Return whether a word without the name of a setting names a run, or can be meant as nothing else."""
    if setting == "numbers" or word == "last" or word.endswith(".ckpt") or word.startswith("logs/"):
        return True
    if setting == "run" and is_path(word):
        return True
    logs = logs_folder()
    inside = word.removeprefix("logs/")
    places = [expanduser(word), ROOT / word, logs / inside, *(folder / inside for folder in logs.glob("*"))]
    return any(_is_run(place) for place in places)


def _is_run(folder: Path) -> bool:
    return any(os.path.exists(folder / name) for name in IN_RUNS)  # Path.exists raises an error if the name is too long

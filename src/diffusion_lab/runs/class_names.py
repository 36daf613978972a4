"""The file with the names of the classes in a run folder, and the setting `label` with names instead of numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.atomic_files import atomic_file
from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import instantiate_node

FILE = "class_names.json"
"""Name of the file in a run folder with a list of the names of all classes."""


def save(names: Sequence[str], folder: Path) -> None:
    """Write the names of the classes of the training images to the run folder."""
    with atomic_file(folder / FILE) as partial:
        partial.write_text(json.dumps(list(names)) + "\n")


def load(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes of a run; () if its images have no names, or for a run of an earlier version."""
    return tuple(json.loads((folder / FILE).read_text())) if (folder / FILE).is_file() else ()


def _load_from_data(config: DictConfig) -> tuple[str, ...]:
    """Return the names of the classes in the data set of a run; () if it cannot be read.  config: resolved config."""
    try:
        return tuple(instantiate_node(config.data.store, "data").load("train").class_names)
    except (UserError, ValueError, OSError):
        return ()


def as_label(given: Any, folder: Path, config: DictConfig) -> Any:
    """Return the setting `label` with the names of classes replaced by their numbers.

    given: null, "random", a number, a name, or a list of numbers and names.
    folder, config: folder and resolved config of the run that defines the classes.
    Raises UserError for a name that no class has.
    """
    is_list = OmegaConf.is_list(given) or isinstance(given, (list, tuple))
    labels = list(given) if is_list else [given]
    if any(isinstance(label, str) and label != "random" for label in labels):
        from diffusion_lab.data.classes import number_of  # the package imports torch

        names = load(folder) or _load_from_data(config)
        try:
            labels = [number_of(label, names) if isinstance(label, str) else label for label in labels]
        except ValueError as error:
            raise UserError(str(error)) from error
    return labels if len(labels) != 1 else labels[0]

"""The names of the classes of a run, which are in a file in the run folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

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


def of_label(label: Any, folder: Path, config: DictConfig) -> tuple[str, ...]:
    """Return the names of the classes in which the setting `label` is given; () if they are not known.

    folder, config: folder and resolved config of the run that defines the classes. The data set of a run of an earlier
        version is read only if `label` contains a name.
    """
    from diffusion_lab.data.classes import has_names  # the package imports torch

    names = load(folder)
    if names or not has_names(label):
        return names
    try:
        return tuple(instantiate_node(config.data.store, "data").load("train").class_names)
    except (UserError, ValueError, OSError):
        return ()

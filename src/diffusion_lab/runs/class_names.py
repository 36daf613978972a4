"""The names of the classes of a run, and the classes that it was trained on: files in the run folder."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffusion_lab.config.saved_files import read_saved_json
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.runs.load import instantiate_node

FILE = "class_names.json"
"""Name of the file in a run folder with a list of the names of all classes."""


TRAINED_FILE = "trained_classes.json"
"""Name of the file in a run folder with a list of the numbers of the classes of the training images."""


def save(names: Sequence[str], folder: Path) -> None:
    """Write the names of the classes of the training images to the run folder."""
    with atomic_file(folder / FILE) as partial:
        partial.write_text(json.dumps(list(names)) + "\n")


def load(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes of a run; () if its images have no names, or for a run of an earlier version."""
    return tuple(map(str, read_saved_json(folder / FILE, list)))


def save_trained(numbers: Sequence[int], folder: Path) -> None:
    """Write the numbers of the classes of the training images to the run folder."""
    with atomic_file(folder / TRAINED_FILE) as partial:
        partial.write_text(json.dumps(list(numbers)) + "\n")


def load_trained(folder: Path, config: DictConfig, num_classes: int) -> tuple[int, ...]:
    """Return the numbers of the classes that a run was trained on; () if these are all classes.

    config: config of the run, whose setting data.classes is used for a run of an earlier version.
    """
    if (folder / TRAINED_FILE).is_file():
        numbers = [number for number in read_saved_json(folder / TRAINED_FILE, list) if isinstance(number, int)]
    else:
        names, chosen = load(folder), config.data.get("classes")
        given = [str(name) for name in ([chosen] if isinstance(chosen, (str, int)) else chosen or ())]
        numbers = [
            names.index(name) if name in names else int(name) for name in given if name in names or name.isdecimal()
        ]
    return proper_subset(numbers, num_classes)


def proper_subset(numbers: Iterable[int], num_classes: int) -> tuple[int, ...]:
    """Return different class numbers in ascending order; () if these are all classes, or if there are no classes."""
    found = tuple(sorted({number for number in numbers if 0 <= number < num_classes}))
    return found if len(found) < num_classes else ()


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

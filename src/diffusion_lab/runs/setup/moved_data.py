"""Images of a run that are in another place than in training: data.path and data.condition_path of sample and evaluate.

Torch is imported inside functions, so that invalid settings are rejected without its import time.
"""

import logging
import os
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.load import instantiate_node, load_config, resolve
from diffusion_lab.runs.setup import condition as condition_setup

logger = logging.getLogger(__name__)

Places = tuple[tuple[str, str], ...]
"""Pairs of a setting below `data` and its new value."""

KEYS = {
    "path": ("data.path", "data.store.path", "data.datamodule.store.path"),
    "condition_path": ("data.condition_path", "data.pairs.path", "data.datamodule.pairs.path"),
}
"""Setting below `data` -> keys of a saved config that contain its path."""


def use_place(trained: DictConfig, data: DictConfig, target: Target) -> None:
    """Replace the paths of the images in the config `trained` of the run of `target`, in place.

    data: node with the new places of the images; None keeps a place.
    Raises UserError if the images cannot be loaded, or if they are not those that the run was trained on.
    """
    given = {setting: path for setting in KEYS if (path := data.get(setting)) is not None}
    places = tuple((setting, os.path.abspath(os.path.expanduser(str(path)))) for setting, path in given.items())
    if places:
        _require_trained_on(places, target)
        _set_paths(trained, places)


def _set_paths(config: DictConfig, places: Places) -> None:
    for setting, place in places:
        keys = [key for key in KEYS[setting] if _has_key(config, key)]
        paired = condition_setup.paired_setting(config) or ""
        if not keys or (setting == "condition_path" and not paired.startswith("data.condition_path=")):
            kind = "paired images in a folder" if setting == "condition_path" else "a path"
            raise UserError(f"data.{setting} must not be given for a data set without {kind}, got {place}.")
        for key in keys:
            OmegaConf.update(config, key, place)


def _has_key(config: DictConfig, key: str) -> bool:
    """Return whether a config has a key, whose value may be null."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    return node is not None and name in node


@cache  # evaluations build each measurement twice
def _require_trained_on(places: Places, target: Target) -> None:
    config = resolve(load_config(target.folder))
    _set_paths(config, places)
    names = " and ".join(f"data.{setting}" for setting, _ in places)
    shown = " and ".join(place for _, place in places)
    try:
        found = instantiate_node(config.data.datamodule, "data").fingerprint
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    trained_on = _fingerprint(target)
    if trained_on is None:
        logger.warning("%s has no fingerprint of its images, so the images in %s are not checked.", target.name, shown)
    elif trained_on != found:
        raise UserError(
            f"{names} must have the images that {target.folder.name} was trained on, got {shown}, whose decoded "
            "content differs."
        )


def _fingerprint(target: Target) -> str | None:
    """Return the fingerprint of the images that a run was trained on, from the first checkpoint that contains it."""
    from diffusion_lab import checkpoint_files

    folder = target.checkpoint.parent
    files = (target.checkpoint, folder / checkpoint_files.LAST, folder / checkpoint_files.PREVIOUS)
    for file in filter(Path.is_file, files):
        try:
            found = checkpoint_files.read_run(file, mmap=True).get("ImageDataModule", {}).get("fingerprint")
        except (checkpoint_files.DamagedCheckpointError, FileNotFoundError):
            continue  # the command itself reports a damaged checkpoint
        if found is not None:
            return str(found)
    return None

"""Images of a run that are in another place than in training: the setting `data.path` of sample and evaluate.

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

logger = logging.getLogger(__name__)

NODES = ("data", "data.store", "data.datamodule.store")
"""Nodes of a saved config that contain the path of the images."""


def use_place(trained: DictConfig, path: str | None, target: Target) -> None:
    """Replace the path of the images in the config `trained` of the run of `target`, in place.

    path: new place of the images; None keeps the place.
    Raises UserError if the images cannot be loaded, or if they are not those that the run was trained on.
    """
    if path is None:
        return
    place = os.path.abspath(os.path.expanduser(str(path)))
    _require_trained_on(place, target)
    _set_path(trained, place)


def _set_path(config: DictConfig, place: str) -> None:
    nodes = [node for name in NODES if (node := OmegaConf.select(config, name)) is not None and "path" in node]
    if not nodes:
        raise UserError(f"data.path must not be given for a data set without a path, got {place}.")
    for node in nodes:
        node.path = place


@cache  # evaluations build each measurement twice
def _require_trained_on(place: str, target: Target) -> None:
    config = resolve(load_config(target.folder))
    _set_path(config, place)
    try:
        found = instantiate_node(config.data.datamodule, "data").fingerprint
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    trained_on = _fingerprint(target)
    if trained_on is None:
        logger.warning("%s has no fingerprint of its images, so the images in %s are not checked.", target.name, place)
    elif trained_on != found:
        raise UserError(
            f"data.path must have the images that {target.folder.name} was trained on, got {place}, whose decoded "
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

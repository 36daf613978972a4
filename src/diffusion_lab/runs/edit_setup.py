"""Setup of an edit: config and run folder -> the results that the network of the run generates from source images.

Torch and Lightning are imported inside functions, so that invalid settings are rejected without their import time.
"""

from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_lab.config.overrides import given_overrides, override_key
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.runs.edit_images import build_sources
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.load import instantiate_node, require_kind, resolve
from diffusion_lab.runs.sampling_setup import build_images, checked_config

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.edits import Task
    from diffusion_lab.generation.edited_images import EditedImages

PARTS = {"mask": "which fills no pixels of a mask", "posterior": "which has no measurement"}
"""Config groups whose objects are arguments of some tasks, and what the other tasks lack."""

OF_CASCADES: dict[str, Any] = {"cascade": [], "cascade_steps": None, "low_resolution_noise": 0.0}
"""Settings of other commands with which images are generated, and their values in an edit."""


def complete(config: DictConfig) -> None:
    """Add the settings of cascades, which an edit does not have, in place.

    Raises UserError for a mask or a posterior sampler that is given for a task without one.
    """
    with open_dict(config):
        config.update(OF_CASCADES)
    for part, reason in PARTS.items():
        given = [text for text in given_overrides() if override_key(text).partition(".")[0] == part]
        if given and part not in config.task:
            raise UserError(f"`{part}` must not be given for task={chosen_task()}, {reason}, got {given[0]}.")


def chosen_task() -> str:
    """Return the choice of the setting `task`."""
    return str(HydraConfig.get().runtime.choices["task"])


def build_task(config: DictConfig) -> "Task":
    """Return the task of a config, with its mask and its posterior sampler.  Raises UserError for invalid settings."""
    from diffusion_lab.edits import Task

    used = [part for part in PARTS if part in config.task]
    nodes = resolve(OmegaConf.masked_copy(config, ["task", *used]))
    raise_problems([problem for part in (*used, "task") for problem in argument_problems(nodes[part], part)])
    for part in used:  # errors of these objects name their own settings
        instantiate_node(nodes[part], part)
    task = instantiate_node(nodes.task, "task")
    require_kind(task, Task, "task")
    return task  # type: ignore[no-any-return]


def build_edit(config: DictConfig, target: Target, task: "Task", fabric: "Fabric") -> tuple["EditedImages", int]:
    """Return the results of an edit with a checkpoint, and the training step of the checkpoint.

    Raises UserError if a setting does not fit the run or the source images, or if a file is missing or damaged.
    """
    from diffusion_lab.generation.edited_images import EditedImages

    trained = checked_config(config, target)
    if trained.low_resolution is not None:
        raise UserError(
            "`run` must be a run whose network receives no images in addition to the noisy images, got "
            f"{target.folder}, a super-resolution run."
        )
    sources = build_sources(config, trained, task)
    if config.label is None and not sources.has_labels and config.guidance_scale is None:
        config.guidance_scale = 1.0 if trained.guidance.get("guide") in (None, "none") else None
    seeded, step = build_images(config, target, fabric)
    try:
        return EditedImages(seeded, sources, task, num_results=config.num_results, seed=config.seed), step
    except ValueError as error:
        raise UserError(str(error)) from error

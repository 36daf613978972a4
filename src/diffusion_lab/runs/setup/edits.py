"""Setup of an edit: config and run folder -> the results that the network of the run generates from source images.

Torch and Lightning are imported inside functions, so that invalid settings are rejected without their import time.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_lab.config.overrides import given_overrides, override_key
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.load import instantiate_node, require_kind, resolve
from diffusion_lab.runs.setup import condition as condition_setup
from diffusion_lab.runs.setup.cascade import stage_configs
from diffusion_lab.runs.setup.edit_images import build_sources
from diffusion_lab.runs.setup.image_sets import SOURCES
from diffusion_lab.runs.setup.sampling import build_stages, checked_config, config_of_images

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.edits import Task
    from diffusion_lab.generation.edited_images import EditedImages
    from diffusion_lab.generation.seeded_images import SeededImages
    from diffusion_lab.samplers import Sampler

logger = logging.getLogger(__name__)

PARTS = {"mask": "which fills no pixels of a mask", "posterior": "which has no measurement"}
"""Config groups whose objects are arguments of some tasks, and what the other tasks lack."""


def complete(config: DictConfig) -> None:
    """Add no metrics for metrics=[] and for sources whose colors are unknown, in place.

    Raises UserError without `images` if the task needs them, and for a mask or a posterior sampler that is given for a
    task without one.
    """
    with open_dict(config):
        config.metrics = config.get("metrics") or {}  # metrics=[] selects no group
        if _is_transparent(config) and not any(override_key(text) == "metrics" for text in given_overrides()):
            config.metrics = {}  # there is no source for the default, psnr
    has_images = not OmegaConf.is_missing(config, "images") and config.images is not None
    if not has_images and "num_frames" not in config.task:  # sequences of frames need none
        raise UserError(f"`images` must be {SOURCES}, got no value.")
    if not isinstance(config.save_noises, bool) or (config.save_noises and chosen_task() != "invert"):
        raise UserError(f"save_noises must be false for task={chosen_task()}, got {config.save_noises}.")
    if config.captions is not False and "num_frames" not in config.task:
        raise UserError(
            f"captions must be false for task={chosen_task()}, whose results are no frames of a sequence, got "
            f"{config.captions}."
        )
    for part, reason in PARTS.items():
        given = [text for text in given_overrides() if override_key(text).partition(".")[0] == part]
        if given and part not in _parts(config):
            raise UserError(f"`{part}` must not be given for task={chosen_task()}, {reason}, got {given[0]}.")


def _is_transparent(config: DictConfig) -> bool:
    """Return whether the transparent pixels of source images are filled."""
    return "mask" in _parts(config) and str(HydraConfig.get().runtime.choices["mask"]) == "transparent"


def chosen_task() -> str:
    """Return the choice of the setting `task`."""
    return str(HydraConfig.get().runtime.choices["task"])


def build_edit(config: DictConfig, target: Target, fabric: "Fabric") -> tuple["EditedImages", int]:
    """Return the results of an edit with a checkpoint, and the training step of the checkpoint.

    Raises UserError if a setting does not fit the run or the source images, or if a file is missing or damaged.
    """
    from diffusion_lab.generation.cascade import CascadeImages
    from diffusion_lab.generation.condition_images import MaskedImages
    from diffusion_lab.generation.edited_images import EditedImages

    trained = checked_config(config, target)
    fills_holes = trained.get("masking") is not None
    require_no_images(trained, target, accepted=("masking",))
    stages = [resolve(stage) for _, stage in stage_configs(config)]
    _use_default_posterior(config, [trained, *stages])
    task = build_task(config)
    _require_posterior_of_network(task, target, fills_holes=fills_holes)
    _require_stages(config, task, target, fills_holes=fills_holes)
    sources = build_sources(config, config_of_sources(config, trained, target), task)
    if config.label is None and not sources.has_labels and config.guidance_scale is None:
        config.guidance_scale = 1.0 if trained.guidance.get("guide") in (None, "none") else None
    masking = instantiate_node(trained.masking, "masking") if fills_holes else None
    conditions = None if masking is None else MaskedImages(sources.images, sources.name, masking)

    def results(seeded: "SeededImages") -> EditedImages:
        of_stage = (task.upsampling or task) if isinstance(seeded.condition_images, CascadeImages) else task
        if "posterior" in _parts(config) and config.get("clipping") is None and not fills_holes:
            seeded.sampler = _with_clipping(seeded)
        given = sources.at(seeded.shape[-1])
        return EditedImages(seeded, given, of_stage, num_results=config.num_results, seed=config.seed)

    return build_stages(config, target, fabric, results, conditions)


def require_no_images(trained: DictConfig, target: Target, *, accepted: Sequence[str]) -> None:
    """Raise UserError for a run whose network is conditioned on other images than those of the groups `accepted`.

    trained: resolved config of the run.
    """
    if not condition_setup.has_condition_images(trained) or any(trained.get(name) is not None for name in accepted):
        return
    others, kind, remedy = ", or masked images" if "masking" in accepted else "", "masked or paired images", ""
    if trained.low_resolution is not None:
        kind = "low-resolution images"
        remedy = f"; cascade=[{target.folder}] upsamples the images of the run that `run` names"
    raise UserError(
        f"`run` must be a run whose network receives no images in addition to the noisy images{others}, got "
        f"{target.folder}, whose network receives {kind}{remedy}."
    )


def config_of_sources(config: DictConfig, trained: DictConfig, target: Target) -> DictConfig:
    """Return the resolved config of the run for whose resolution sources are prepared: the last run of a cascade.

    trained: resolved config of the run.
    """
    return resolve(config_of_images(config, target)) if config.cascade else trained


def _require_stages(config: DictConfig, task: "Task", target: Target, *, fills_holes: bool) -> None:
    """Raise UserError if a cascade is given for a task or for a network that edits images of one resolution only."""
    if not config.cascade:
        return
    if fills_holes:
        raise UserError(
            f"`cascade` must be [] for {target.folder}, whose network was trained with masking, got {config.cascade}."
        )
    if task.upsampling is None:
        raise UserError(
            f"`cascade` must be [] for task={chosen_task()}, which edits images of one resolution only, got "
            f"{config.cascade}."
        )


def _with_clipping(seeded: "SeededImages") -> "Sampler":
    """Return the sampler of a restoration, with clipping in pixel space.

    Without clipping, an estimate of x_0 given a measurement can be far outside the range of images at times with little
    signal, because posterior samplers approximate the covariance of x_0. Latents have no fixed range.
    """
    from diffusion_lab.latents import Pixels
    from diffusion_lab.samplers import NoClipping, StaticClipping

    sampler: Any = seeded.sampler  # a dataclass
    if not isinstance(sampler.clipping, NoClipping) or seeded.module.space != Pixels():
        return seeded.sampler
    logger.info("clipping=static is used for task=%s; clipping=none uses that of the run.", chosen_task())
    return replace(sampler, clipping=StaticClipping())  # type: ignore[no-any-return]


def _require_posterior_of_network(task: "Task", target: Target, *, fills_holes: bool) -> None:
    """Raise UserError unless a network that fills holes, and no other network, is used for this.

    fills_holes: whether the network of the run was trained with masking.
    """
    from diffusion_lab.edits import Inpaint
    from diffusion_lab.inverse_problems import InpaintingNetwork

    posterior = getattr(task, "posterior", None)
    if fills_holes and not (isinstance(task, Inpaint) and isinstance(posterior, InpaintingNetwork)):
        chosen = f"task={task.name}" + (f" with posterior={task.posterior.name}" if isinstance(task, Inpaint) else "")
        raise UserError(
            f"`task` must be inpaint with posterior=network for {target.folder}, whose network was trained with "
            f"masking, got {chosen}."
        )
    if not fills_holes and isinstance(posterior, InpaintingNetwork):
        raise UserError(
            f"`posterior` must be another choice than network for {target.folder}, which was not trained with masking."
        )


def build_task(config: DictConfig) -> "Task":
    """Return the task of a config, with its mask and its posterior sampler.  Raises UserError for invalid settings."""
    from diffusion_lab.edits import Task

    used = _parts(config)
    nodes = resolve(OmegaConf.masked_copy(config, ["task", *used]))
    raise_problems([problem for part in (*used, "task") for problem in argument_problems(nodes[part], part)])
    for part in used:  # errors of these objects name their own settings
        instantiate_node(nodes[part], part)
    task = instantiate_node(nodes.task, "task")
    require_kind(task, Task, "task")
    return task  # type: ignore[no-any-return]


def _parts(config: DictConfig) -> list[str]:
    """Return the groups of PARTS that the task of a config uses."""
    return [part for part in PARTS if part in list(config.task.keys())]


def _use_default_posterior(config: DictConfig, stages: list[DictConfig]) -> None:
    """Select the posterior sampler of a restoration, if it is not given, in place.

    stages: resolved configs of the run and of the super-resolution runs, which have the same posterior sampler.
    """
    if "posterior" not in _parts(config) or config.get("posterior") is not None:
        return
    masked = stages[0].get("masking") is not None
    accepts_ddrm = all(
        stage.space._target_.endswith(".Pixels")
        and stage.sampler._target_.endswith(".DDIM")
        and not stage.sampler.get("eta")
        for stage in stages
    )
    with open_dict(config):
        config.posterior = _choice("posterior", "network" if masked else "ddrm" if accepts_ddrm else "pigdm")


def _choice(group: str, name: str) -> Any:
    return OmegaConf.load(CONF / group / f"{name}.yaml")

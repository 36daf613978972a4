"""Setup of a sequence of frames: config and run folder -> the frames that the network of the run generates.

Torch and Lightning are imported inside functions, so that invalid settings are rejected without their import time.
"""

import logging
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_lab.config.overrides import given_overrides, override_key
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.load import instantiate_node, require_kind, resolve
from diffusion_lab.runs.setup import edits as edit_setup
from diffusion_lab.runs.setup.edit_images import build_sources
from diffusion_lab.runs.setup.evaluation import measured_config
from diffusion_lab.runs.setup.sampling import build_stages, checked_config

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.edits import FrameSequence
    from diffusion_lab.generation.edit_sources import EditSources
    from diffusion_lab.generation.frame_images import FrameImages
    from diffusion_lab.generation.seeded_images import SeededImages
    from diffusion_lab.metrics import Smoothness

logger = logging.getLogger(__name__)

MOST_PICTURES = 64
"""Default of the largest number of frames in the grid."""

OF_RESULTS = {
    "num_results": "which has one frame at each place",
    "num_frames": "whose animation has all frames; task.num_frames sets their number",
    "save_noises": "whose noise is not saved",
    "reference": "whose frames are not compared with a reference",
}
"""Settings of other tasks, and what the tasks with frames have instead."""


def is_sequence(config: DictConfig) -> bool:
    """Return whether the task of a config generates a sequence of frames."""
    return "num_frames" in config.task


def complete(config: DictConfig) -> None:
    """Replace the defaults of other tasks by those of a sequence, in place.

    Raises UserError for a setting that has no effect on a sequence, or for another metric than smoothness.
    """
    edit_setup.complete(config)
    given, task = {override_key(text): text for text in given_overrides()}, edit_setup.chosen_task()
    for name, reason in OF_RESULTS.items():
        if name in given:
            raise UserError(f"`{name}` must not be given for task={task}, {reason}, got {given[name]}.")
    if task == "sweep" and config.guidance_scale is not None:
        raise UserError(
            "guidance_scale must not be given for task=sweep, whose scales are task.guidance_scales, got "
            f"{config.guidance_scale}."
        )
    if not isinstance(config.captions, bool):
        raise UserError(f"`captions` must be true or false, got {config.captions}.")
    if "animation" not in given:
        config.animation = True
    if "num_pictures" not in given and isinstance(config.task.num_frames, int):
        config.num_pictures = min(max(config.task.num_frames, 0), MOST_PICTURES)
    with open_dict(config):
        if not any(name.partition(".")[0] == "metrics" for name in given):
            config.metrics = {"smoothness": OmegaConf.load(CONF / "metrics" / "smoothness.yaml")}
    if others := [str(name) for name in config.metrics if name != "smoothness"]:
        raise UserError(f"metrics must be smoothness or [] for task={task}, got {others[0]}.")


def build_frames(config: DictConfig, target: Target, fabric: "Fabric") -> tuple["FrameImages", int]:
    """Return the frames of a sequence with a checkpoint, and the training step of the checkpoint.

    Raises UserError if a setting does not fit the run or the source images, or if a file is missing or damaged.
    """
    from diffusion_lab.generation.frame_images import FrameImages

    sequence, trained = _build_sequence(config), checked_config(config, target)
    edit_setup.require_no_images(trained, target, accepted=())
    prepared = edit_setup.config_of_sources(config, trained, target)
    sources = _sources(config, prepared, sequence)
    if sources is not None and config.guidance_scale is None and trained.guidance.get("guide") in (None, "none"):
        config.guidance_scale = 1.0  # guided steps are not inverted precisely

    def frames(seeded: "SeededImages") -> FrameImages:
        given = None if sources is None else sources.at(seeded.shape[-1])
        return FrameImages(seeded, sequence, sources=given, seed=config.seed)

    return build_stages(config, target, fabric, frames)


def _build_sequence(config: DictConfig) -> "FrameSequence":
    from diffusion_lab.edits import FrameSequence

    node = resolve(OmegaConf.masked_copy(config, ["task"])).task
    raise_problems(list(argument_problems(node, "task")))
    sequence = instantiate_node(node, "task")
    require_kind(sequence, FrameSequence, "task")
    return sequence  # type: ignore[no-any-return]


def _sources(config: DictConfig, trained: DictConfig, sequence: "FrameSequence") -> "EditSources | None":
    """Return the source images on the path, or None without the setting `images`."""
    if OmegaConf.is_missing(config, "images") or config.images is None:
        if config.num_images is not None:
            raise UserError(f"`images` must be given for num_images={config.num_images}, got none.")
        return None
    if not sequence.takes_images:
        raise UserError(
            f"`images` must not be given for task={sequence.name}, whose frames have the noise of `seed`, got "
            f"{config.images}."
        )
    if seeds := [text for text in given_overrides() if override_key(text) == "task.seeds"]:
        raise UserError(f"task.seeds must not be given together with `images`, got {seeds[0]}.")
    return build_sources(config, trained, sequence)


def build_smoothness(config: DictConfig, target: Target) -> "Smoothness | None":
    """Return the metric of the frames, or None if it is not measured.

    If the metric is not requested and the weights of its features are missing, a warning names them.
    Raises UserError for invalid features.
    """
    from diffusion_lab.features import FeaturesUnavailableError
    from diffusion_lab.metrics import Smoothness

    if "smoothness" not in config.metrics:
        return None
    trained = measured_config(config, target)
    node = resolve(OmegaConf.masked_copy(trained, ["metrics", "features", "data"])).metrics.smoothness
    raise_problems(list(argument_problems(node, "metrics.smoothness")))
    try:
        features = instantiate_node(node.features, "features")
    except FeaturesUnavailableError as error:
        if "metrics" in map(override_key, given_overrides()):
            raise UserError(str(error)) from error
        logger.warning("the smoothness of the frames is not measured: %s", str(error).rstrip("."))
        return None
    if trained.data.channels is not None and trained.data.channels not in features.channels:
        accepted = " or ".join(map(str, features.channels))
        raise UserError(
            f"`features` must be a network for images with {trained.data.channels} channels, got {features.name}, "
            f"which accepts {accepted}."
        )
    return Smoothness(features)

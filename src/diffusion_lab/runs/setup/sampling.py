"""Setup of sampling: config and run folders -> the images that the networks of the runs generate.

Torch and Lightning are imported inside functions, so that invalid settings are rejected without their import time.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.compilation import Acceleration
from diffusion_lab.config.program import command_line
from diffusion_lab.config.saved_files import reading
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.distributed.launch import cluster_environment, describe_device, protect_new_ranks
from diffusion_lab.errors import UserError
from diffusion_lab.runs import class_names
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.lightning_messages import silence_lightning
from diffusion_lab.runs.load import (
    instantiate_node,
    is_classifier_config,
    load_checkpoint,
    load_weights,
    resolve,
)
from diffusion_lab.runs.setup import condition as condition_setup
from diffusion_lab.runs.setup.cascade import cascade_stages, stage_configs
from diffusion_lab.runs.setup.chosen_sampler import note_default_settings
from diffusion_lab.runs.setup.guidance import require_guidable
from diffusion_lab.runs.setup.moved_data import use_place
from diffusion_lab.runs.setup.sampler_check import require_samples
from diffusion_lab.runs.setup.trained_config import load_trained_config
from diffusion_lab.runs.setup.trainer_settings import require_accelerator, require_launch

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.generation.batched_images import BatchedImages
    from diffusion_lab.generation.condition_images import ConditionImages
    from diffusion_lab.generation.seeded_images import SeededImages
    from diffusion_lab.training.diffusion_module import DiffusionModule

Images = TypeVar("Images", bound="BatchedImages")

SAMPLER_PARTS = ("time_grid", "clipping", "variance")
"""Config groups whose objects are arguments of a sampler."""

GUIDANCE_SETTINGS = ("guidance_scale", "guide", "classifier", "classifier_scale")
"""Guidance settings at the top level of the config; all other guidance settings are below `guidance`."""

SINCE_VERSION_0_2 = ("guidance", "space", "low_resolution")
"""Keys that are missing in configs from version 0.1. Network settings also differ in that version."""

WHOLE_NUMBERS = {"seed": 0, "num_pictures": 0} | dict.fromkeys(
    ("num_images", "num_samples", "num_results", "batch_size", "num_columns", "num_frames", "cascade_steps"), 1
)
"""Settings of sample, evaluate and edit that are whole numbers, with the smallest accepted value."""

NULL_WITH = {"num_columns": "run", "num_pictures": "num_samples", "num_images": "task", "cascade_steps": "run"}
"""Settings that may be null (computed from other settings) -> setting of the commands that accept null."""


def require_whole_numbers(config: DictConfig) -> None:
    """Raise UserError for a value of a setting in WHOLE_NUMBERS that is not accepted."""
    for name, least in WHOLE_NUMBERS.items():
        if config.get(name) is None and NULL_WITH.get(name, "") in config:
            continue
        if name in config and (type(config[name]) is not int or config[name] < least):
            raise UserError(f"{name} must be a whole number of at least {least}, got {config[name]}.")


def require_loadable(config: DictConfig, targets: Sequence[Target]) -> None:
    """Raise UserError, before ranks are started, if the config of a run cannot be read or is not trusted."""
    for target in (*targets, *cascade_stages(config)):
        load_trained_config(target.folder)


def launch_fabric(config: DictConfig) -> "Fabric":
    """Start the ranks that config.trainer requests, or join the ranks that a launcher started.

    Raises UserError if Fabric rejects the settings of the trainer, or if they do not match the started ranks.
    """
    from lightning import Fabric

    silence_lightning()
    require_launch(config.trainer)
    require_accelerator(str(config.trainer.accelerator))
    settings = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    try:
        fabric = Fabric(
            **{key: config.trainer[key] for key in settings if key in config.trainer}, plugins=[cluster_environment()]
        )
    except Exception as error:  # Fabric raises errors of many types for settings that it does not accept
        raise UserError(f"trainer: {' '.join(str(error).split()).rstrip('.!')}.") from error
    protect_new_ranks(fabric.strategy)
    fabric.launch()
    if fabric.is_global_zero:
        print(f"device: {describe_device(fabric.device, config.trainer.precision, fabric.world_size)}", flush=True)
    if config.trainer.precision == "32-true":
        _disable_tf32()
    return fabric


def _disable_tf32() -> None:
    """Make float32 convolutions precise and deterministic.

    By default cuDNN rounds to TF32, whose mantissa has 10 bits, and may sum in a different order in each process.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def sampling_config(config: DictConfig, target: Target) -> DictConfig:
    """Return the config of the run `target`, with its sampling settings replaced by those in `config`.

    Interpolations are not resolved.
    Raises UserError for a classifier run and for a run that was trained with version 0.1.
    """
    trained = load_trained_config(target.folder)
    if is_classifier_config(trained):
        raise UserError(
            f"`run` must be a run folder of `{command_line('train')}`, got {target.folder}, which contains a "
            "classifier."
        )
    if missing := [name for name in SINCE_VERSION_0_2 if name not in trained]:
        raise UserError(
            f"`run` must have been trained with version 0.2 or later, got {target.folder}, whose config.yaml has no "
            f"{missing[0]}; use the version that trained it."
        )
    with reading(target.folder / "config.yaml"):
        _replace_sampling_settings(trained, config)
    if not config.cascade or condition_setup.has_condition_images(trained):  # otherwise its images are not read
        use_place(trained, config.data, target)
    return trained


def load_module(config: DictConfig, trained: DictConfig, target: Target) -> tuple["DiffusionModule", int]:
    """Return the module of a checkpoint, and the training step of the checkpoint.

    trained: resolved config of the run.
    Raises UserError if the checkpoint is damaged or does not match `trained`, or if config.weights is given although
    the checkpoint contains only a reconstructed average.
    """
    from diffusion_lab.ema.averages import PowerFunctionDecay

    module, checkpoint = load_checkpoint(trained, target.checkpoint)
    if "reconstructed" in checkpoint:  # all networks of the checkpoint are the same average
        if config.weights is not None:
            raise UserError(
                f"`weights` must be null for checkpoint={target.checkpoint.name} (which has only the reconstructed "
                f"average), got {config.weights}."
            )
        module.ema.decays = dict.fromkeys(module.ema.decays, PowerFunctionDecay(checkpoint["reconstructed"]))
    return module.eval(), int(checkpoint["global_step"])


def checked_config(config: DictConfig, target: Target) -> DictConfig:
    """Return the config of `sampling_config`, resolved.  Raises UserError for settings of a wrong type."""
    trained = resolve(sampling_config(config, target))
    _require_effect(config, trained)
    problems = [problem for key in ("sampler", "guidance") for problem in argument_problems(trained[key], key)]
    raise_problems([problem.replace("guidance.guidance_scale", "guidance_scale") for problem in problems])
    return trained


def build_images(config: DictConfig, target: Target, fabric: "Fabric") -> tuple["SeededImages", int]:
    """Return the `SeededImages` of a checkpoint with the settings in `config`, see `build_stages`."""
    return build_stages(config, target, fabric, lambda images: images)


def build_stages(
    config: DictConfig,
    target: Target,
    fabric: "Fabric",
    make: "Callable[[SeededImages], Images]",
    conditions: "ConditionImages | None" = None,
) -> tuple["Images", int]:
    """Return the images of a checkpoint with the settings in `config`, and the training step of the checkpoint.

    make: function of the images that a network generates from seeds; it returns the images that the next stage of a
        cascade upsamples, or that are returned for the last stage.
    conditions: condition images of the network; None selects those of the data set of the run.
    Raises UserError if a setting does not fit the runs or has no effect, or if a file is missing or damaged.
    """
    trained = checked_config(config, target)
    note_default_settings(config.sampler, trained.sampler, load_trained_config(target.folder).sampler)
    module, step = load_module(config, trained, target)
    require_samples(module)
    stages = [(stage, resolve(stage_config)) for stage, stage_config in stage_configs(config)]
    _require_cascade_steps(config, stages)

    from diffusion_lab.generation.seeded_images import SeededImages

    module.class_names = class_names.of_label(config.label, target.folder, trained)
    module.trained_classes = class_names.load_trained(target.folder, trained, module.num_classes)
    settings = {"label": config.label, "weights": config.weights, "batch_size": config.batch_size}
    try:
        source = conditions or condition_setup.condition_images(config, trained)
        guidance = instantiate_node(trained.guidance, "guidance")
        require_guidable(guidance, module)
        _accelerate(config, module.to(fabric.device))
        images = make(SeededImages(module, guidance=guidance, condition_images=source, **settings))
        for number, (stage, stage_config) in enumerate(stages, 1):
            noise = config.low_resolution_noise if number == len(stages) else 0.0
            upsampled = _upsampled_images(config, images, stage, stage_config, noise, fabric)
            try:
                images = make(upsampled)
            except (ValueError, UserError) as error:
                raise UserError(f"cascade: {stage.folder}, which uses the sampler of its run: {error}") from error
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    return images, step


def _require_cascade_steps(config: DictConfig, stages: Sequence[tuple[Target, DictConfig]]) -> None:
    for stage, stage_config in stages if config.cascade_steps is not None else ():
        try:
            instantiate_node(stage_config.sampler, "sampler")
        except UserError as error:
            raise UserError(f"cascade_steps={config.cascade_steps} does not fit {stage.folder}: {error}") from error


def _upsampled_images(
    config: DictConfig, images: "BatchedImages", stage: Target, stage_config: DictConfig, noise: float, fabric: "Fabric"
) -> "SeededImages":
    """Return the `SeededImages` of `stage` of a cascade, which upsamples the images of the previous stage.

    images: images of the previous stage.  noise: standard deviation of the noise that is added to `images`.
    """
    from diffusion_lab.generation.cascade import CascadeImages
    from diffusion_lab.generation.seeded_images import SeededImages

    source = CascadeImages(images, instantiate_node(stage_config.low_resolution, "low_resolution"), noise)
    module = load_weights(stage_config, stage.checkpoint).eval()
    require_samples(module)
    module.to(fabric.device)
    _accelerate(config, module)
    guidance = instantiate_node(stage_config.guidance, "guidance")
    return SeededImages(module, guidance=guidance, condition_images=source, batch_size=config.batch_size)


def _require_effect(config: DictConfig, trained: DictConfig) -> None:
    """Raise UserError for a setting that would have no effect."""
    if config.classifier_scale is not None and trained.classifier in (None, "none"):
        raise UserError(f"`classifier` must be given for classifier_scale={config.classifier_scale}, got none.")
    if config.cascade_steps is not None and not config.cascade:
        raise UserError(f"`cascade` must be given for cascade_steps={config.cascade_steps}, got none.")
    if config.low_resolution_noise and not config.cascade and trained.low_resolution is None:
        raise UserError(f"low_resolution_noise must be 0 without super-resolution, got {config.low_resolution_noise}.")


def _accelerate(config: DictConfig, module: "DiffusionModule") -> None:
    from diffusion_lab.ema.averages import RAW

    accelerate = Acceleration.from_trainer(config.trainer)
    if accelerate.compile and config.weights == RAW:
        raise UserError(
            "trainer.compile must be false for weights=raw (because the raw weights are copied for each batch), got "
            f"{accelerate.compile}."
        )
    accelerate.apply_memory_format(module)
    for average in module.ema.networks.values():
        accelerate(average)


def config_of_images(config: DictConfig, target: Target) -> DictConfig:
    """Return the config of the run that generates the final images, with its data: the last run of a cascade."""
    if not config.cascade:
        return sampling_config(config, target)
    stage = cascade_stages(config)[-1]
    trained = load_trained_config(stage.folder)
    use_place(trained, config.data, stage)
    return trained


def _replace_sampling_settings(trained: DictConfig, config: DictConfig) -> None:
    """Replace the sampler and guidance settings in the config `trained` of a run by the settings given in `config`."""
    parts = {part: config[part] for part in SAMPLER_PARTS if part in config and config[part] is not None}
    for part, node in parts.items():
        trained[part] = node
    if "_target_" in config.sampler:
        trained.sampler = config.sampler
    else:  # the config has only settings, which apply to the sampler of the run
        settings = {key: value for key, value in config.sampler.items() if value is not None}
        own_parts = {part: node for part, node in parts.items() if part in trained.sampler}
        trained.sampler = {**trained.sampler, **settings, **own_parts}
    for name in GUIDANCE_SETTINGS:
        if config[name] is not None:
            trained[name] = trained.guidance[name] = config[name]
    if not OmegaConf.is_dict(config.guidance):
        raise UserError(
            f"guidance must be a group of settings, got {config.guidance}; guidance_scale={config.guidance} sets the "
            "scale."
        )
    for name, value in config.guidance.items():
        if value is not None:
            trained.guidance[name] = value

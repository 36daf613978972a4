"""Setup of a training run: config -> module, data and trainer.

Torch and Lightning are imported inside functions, so that invalid settings are rejected without their import time.
"""

import contextlib
import functools
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.config import compilation
from diffusion_lab.config.compilation import Acceleration
from diffusion_lab.config.finite_numbers import require_finite
from diffusion_lab.config.library_classes import import_target, settings_of
from diffusion_lab.config.validation import argument_problems, data_problems, missing_targets, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import build_module, instantiate_node, is_classifier_config, resolve
from diffusion_lab.runs.setup import condition as condition_setup
from diffusion_lab.runs.setup import data_check, fine_tuning, network_check, sampler_check
from diffusion_lab.runs.setup.callbacks import build_callbacks, build_loggers, require_later_needs
from diffusion_lab.runs.setup.fine_tuning import Initialization
from diffusion_lab.runs.setup.guidance import require_guidable
from diffusion_lab.runs.setup.trainer_settings import require_accelerator, require_launch

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.training.classifier_module import ClassifierModule
    from diffusion_lab.training.diffusion_module import DiffusionModule

LIGHTNING_KEYS = ("callbacks", "logger", "trainer", "metrics", "features")
"""Top-level config keys whose objects import Lightning or metrics. These keys are checked after all other keys."""

CONDITION_SETTINGS = {
    "augmentation": ("num_augmentation_channels",),
    "low_resolution": ("condition_channels", "num_augmentation_channels"),
    "masking": ("condition_channels",),
}
"""Config group -> settings of the network that its choices set."""


@dataclass(frozen=True)
class Run:
    """The objects of one training run, and its folder.

    left_out: the reason for each callback that the config names but the run does not have.
    initialization: the weights of another run from which this run starts; None for other weights.
    """

    module: "DiffusionModule | ClassifierModule"
    datamodule: "ImageDataModule"
    trainer: "Trainer"
    folder: Path
    left_out: dict[str, str] = field(default_factory=dict)
    initialization: Initialization | None = None


def build(config: DictConfig, *, is_new: bool = True) -> Run:
    """Build the objects of the run that a config describes.  Raises UserError for invalid settings.

    is_new: whether the run starts without a checkpoint.
    The checks are ordered by their cost: data files, then the network (imports torch), then all other objects
    (imports Lightning).
    """
    config = resolve(config)
    check_numbers(config)
    require_launch(config.trainer)
    accelerate = Acceleration.from_trainer(config.trainer)
    config.trainer = compilation.without_acceleration(config.trainer)
    _check_cuda_graphs(accelerate, config.trainer)
    deferred = [key for key in (*LIGHTNING_KEYS, "data") if key in config]
    condition_setup.require_pixels(config)
    _require_condition_settings(config)
    check_arguments(config, deferred)
    _locate_data(config)

    import torch

    require_accelerator(str(config.trainer.accelerator))
    torch.manual_seed(config.seed)
    network = _build_network(config)
    network_check.require_input_channels(network, config)
    raise_problems(list(argument_problems({key: config[key] for key in deferred}, "")))
    datamodule = instantiate_node(config.data.datamodule, "data")
    names = functools.partial(data_check.load_class_names, datamodule)
    initialization = fine_tuning.prepare_network(network, config, names, is_new=is_new)
    module = build_module(config, network)
    module.adapters = fine_tuning.lora_of(config)
    _require_optimizable(module, config.trainer.max_steps)
    if not is_classifier_config(config):
        network_check.require_labels(network, config.conditioning)
        require_guidable(instantiate_node(config.guidance, "guidance"), typing.cast("DiffusionModule", module))
        _require_shape(config, typing.cast("DiffusionModule", module))
        condition_setup.require_condition(typing.cast("DiffusionModule", module), datamodule)
    else:
        _require_classified(config, network, datamodule)
    network_check.require_forward(module, datamodule)
    callbacks, left_out = build_callbacks(config)
    sampler_check.require_samples(module, callbacks)
    module.trained_classes = data_check.load_classes(datamodule, module)
    require_later_needs(callbacks, module, datamodule, config.trainer.max_steps)
    loggers = build_loggers(config)
    trainer = instantiate_node(config.trainer, "trainer", callbacks=callbacks, logger=loggers)
    accelerate(module.network)
    accelerate.apply_memory_format(module)  # on the complete module: the averages need the memory format, too
    _require_divisible_batch_size(datamodule, trainer)
    return Run(module, datamodule, trainer, Path(config.run_folder), left_out, initialization)


def require_classes(config: DictConfig) -> None:
    """Raise UserError if a new run is conditioned on the labels of a data set with a single class."""
    with contextlib.suppress(OmegaConfBaseException):  # an undefined reference, which `build` reports
        if OmegaConf.select(config, "conditioning.num_classes") == 1:
            key = "data" if OmegaConf.select(config, "data.num_classes") == 1 else "conditioning"
            raise UserError(
                f"conditioning=label must be used with at least 2 classes, got {key}.num_classes=1; conditioning=none "
                "trains without classes, and data=class_folders takes one folder of images per class (to add a class "
                "to those of a trained run, put its folder beside theirs)."
            )


def _build_network(config: DictConfig) -> Any:
    """Build the network.  Raises UserError, which names networks for the resolution if that is the problem."""
    try:
        return instantiate_node(config.model, "model")
    except UserError as error:
        text, side = network_check.name_data_resolution(str(error), config), config.model.get("resolution")
        if not re.search(r"(^|: |attention_)resolution(s)? must ", text) or side != config.data.resolution or side % 4:
            raise UserError(text) from error
        fitting = ["half_unet_quick"] if is_classifier_config(config) else ["unet_quick", "unet_tiny", "unet_small"]
        if side % 16 == 0 and not is_classifier_config(config):
            fitting.append("unet_medium")
        choices = " or ".join(filter(None, [", ".join(fitting[:-1]), fitting[-1]]))
        raise UserError(f"{text.rstrip('.')}; model={choices} fits data.resolution={side}.") from error


def check_numbers(config: DictConfig) -> None:
    """Raise UserError for numbers that are not finite, or a seed or trainer setting that is not accepted."""
    require_finite(config)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**63:
        several = ",".join(map(str, config.seed)) if isinstance(config.seed, ListConfig) else ""
        hint = f"; -m seed={several} trains one run with each seed" if several else ""
        raise UserError(f"seed must be a whole number in 0..2^63 - 1, got {config.seed}{hint}.")
    for name, least in (("gradient_clip_val", 0), ("accumulate_grad_batches", 1)):
        value = config.trainer.get(name)
        if isinstance(value, (int, float)) and value < least:
            raise UserError(f"trainer.{name} must be at least {least}, got {value}.")


def _check_cuda_graphs(accelerate: Acceleration, trainer: DictConfig) -> None:
    if accelerate.compile in compilation.CUDA_GRAPH_MODES and trainer.get("accumulate_grad_batches", 1) != 1:
        raise UserError(
            "trainer.compile must be true, false or max-autotune-no-cudagraphs with trainer.accumulate_grad_batches "
            f"above 1 (because CUDA graphs overwrite accumulated gradients), got {accelerate.compile}."
        )


def _require_condition_settings(config: DictConfig) -> None:
    """Raise UserError for an augmentation or a low resolution, if the network's class has no setting for it."""
    for group, settings in CONDITION_SETTINGS.items():
        if config.get(group) is None:
            continue
        with contextlib.suppress(ImportError, ValueError):  # reported by `check_arguments`
            network = import_target(str(config.model._target_))
            if lacking := [name for name in settings if name in config.model and name not in settings_of(network)]:
                raise UserError(
                    f"`{group}` must be none for {network.__name__}, which has no setting {lacking[0]}, got "
                    f"{str(config[group]._target_).rpartition('.')[2]}."
                )


def check_arguments(config: DictConfig, deferred: list[str]) -> None:
    """Raise UserError for wrong arguments of classes in the config.

    deferred: keys that `build` checks later. If other keys have wrong arguments, the deferred keys are also checked
        here, so that the error message lists all wrong arguments.
    """
    others = {key: node for key, node in config.items() if key not in deferred}
    raise_problems(list(missing_targets(config)))
    of_data = list(data_problems(config.data))
    repeated = tuple(problem.partition(".")[2] for problem in of_data)  # such as model.resolution: ${data.resolution}
    problems = [problem for problem in argument_problems(others, "") if not problem.endswith(repeated)]
    if problems := [*of_data, *problems]:
        lightning = {key: config[key] for key in deferred if key != "data"}
        raise_problems([*problems, *argument_problems(lightning, "")])


def _locate_data(config: DictConfig) -> None:
    from diffusion_lab.data.image_store import require_store

    store = instantiate_node(config.data.store, "data")
    try:
        require_store(store, "data.store")
        store.locate()
    except FileNotFoundError as error:
        is_resumed = (Path(config.run_folder) / "config.yaml").is_file()
        hint = "; data.path=FOLDER names the new place of moved images." if is_resumed else ""
        raise UserError(f"{str(error).rstrip('.')}{hint}" if hint else str(error)) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _require_optimizable(module: "DiffusionModule | ClassifierModule", max_steps: int) -> None:
    """Raise UserError unless the optimizer takes the parameters of the network and its scheduler all steps."""
    from diffusion_lab.training import Muon
    from diffusion_lab.training.lr_schedules import build_scheduler

    try:
        optimizer = module.optimizer(module.network)
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = "; optimizer=muon has AdamW for the others" if module.optimizer.name.endswith(Muon.__name__) else ""
        raise UserError(f"optimizer: {' '.join(str(error).split()).rstrip('.')}{remedy}.") from error
    try:
        scheduler = build_scheduler(module.lr_schedule, optimizer)
    except ValueError as error:
        raise UserError(f"lr_schedule: {' '.join(str(error).split()).rstrip('.')}.") from error
    total_steps = getattr(scheduler, "total_steps", max_steps)
    if total_steps < max_steps:
        raise UserError(f"lr_schedule.total_steps must be at least trainer.max_steps ({max_steps}), got {total_steps}.")


def _require_classified(config: DictConfig, network: Any, datamodule: "ImageDataModule") -> None:
    from diffusion_lab.callbacks.measure_accuracy import measured_images

    accepted, wanted = (network.in_channels, network.resolution), (config.data.channels, config.data.resolution)
    if accepted != wanted:
        raise UserError(
            f"`model` must take images with data.channels={wanted[0]} and data.resolution={wanted[1]}, got a network "
            f"for {accepted[0]} channels and resolution {accepted[1]}."
        )
    if datamodule.pairs is not None:
        raise UserError(f"a classifier has no condition images: {datamodule.pairs.setting} must not be given.")
    if config.data.get("label_column", "label") is None:
        raise UserError("data.label_column must be the name of the label column, got null.")
    try:
        measured_images(datamodule.store)  # a split without labels is an error now, not at the first measurement
    except (ValueError, OSError) as error:
        raise data_check.of_store(error, datamodule) from error


def _require_shape(config: DictConfig, module: "DiffusionModule") -> None:
    """Raise UserError unless the network outputs images of the shape of the data.

    If the network generates latents, also raise UserError for settings that only apply to pixels.
    """
    from diffusion_lab.latents import Pixels
    from diffusion_lab.samplers import NoClipping

    wanted, shape = (config.data.channels, *[config.data.resolution] * 2), module.image_shape
    if tuple(shape) != wanted:
        raise UserError(
            f"`model` must output images with data.channels={wanted[0]} and data.resolution={wanted[1]}, got "
            f"{type(module.network).__name__} in {type(module.space).__name__.lower()} with images of {list(shape)}."
        )
    if isinstance(module.space, Pixels):
        return
    if not isinstance(module.sampler.clipping, NoClipping):
        clipping = type(module.sampler.clipping).__name__
        raise UserError(f"`clipping` must be none for latents (whose range is unbounded), got {clipping}.")


def _require_divisible_batch_size(datamodule: "ImageDataModule", trainer: "Trainer") -> None:
    from diffusion_lab.data.step_sampler import require_divisible_batch_size

    try:
        require_divisible_batch_size(
            datamodule.batch_size, trainer.num_devices * trainer.num_nodes, trainer.accumulate_grad_batches
        )
    except ValueError as error:
        raise UserError(str(error)) from error

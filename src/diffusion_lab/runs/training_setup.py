"""Config -> the objects of one training run: module, data, trainer.

Torch and Lightning are imported inside functions, in the order of what they cost: a refused config must not wait.
"""

import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from diffusion_lab.config import compilation
from diffusion_lab.config.compilation import Acceleration
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import build_module, instantiate_node, is_classifier_config, require_launch, resolve

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.training.classifier_module import ClassifierModule
    from diffusion_lab.training.diffusion_module import DiffusionModule


@dataclass(frozen=True)
class Run:
    """The objects of one training run."""

    module: "DiffusionModule | ClassifierModule"
    datamodule: "ImageDataModule"
    trainer: "Trainer"
    folder: Path


def build(config: DictConfig) -> Run:
    """The run that a config describes; everything that can be wrong with it is said before any data is decoded.

    Ordered by what a check costs: the files of the data, then the network (torch), then all the rest (Lightning).
    Raises UserError.
    """
    config = resolve(config)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**63:
        raise UserError(f"seed must be a whole number in 0..2^63 - 1, got {config.seed}.")
    for name, least in (("gradient_clip_val", 0), ("accumulate_grad_batches", 1)):
        value = config.trainer.get(name)
        if isinstance(value, (int, float)) and value < least:
            raise UserError(f"trainer.{name} must be at least {least}, got {value}.")
    require_launch(config.trainer)
    accelerate, config.trainer = Acceleration.of(config.trainer), compilation.without_acceleration(config.trainer)
    if accelerate.compile in compilation.GRAPHS and config.trainer.get("accumulate_grad_batches", 1) != 1:
        raise UserError(
            "trainer.compile must be true, false or max-autotune-no-cudagraphs where batches are accumulated, since "
            f"CUDA graphs overwrite gradients that are added up, got {accelerate.compile}."
        )
    folder = Path(config.run_folder)
    heavy = tuple(key for key in ("callbacks", "logger", "trainer", "metrics", "features") if key in config)
    light = {key: node for key, node in config.items() if key not in heavy and key != "data"}
    problems = list(argument_problems(config.data.store, "data.store")) + list(argument_problems(light, ""))
    if problems:
        raise_problems([*problems, *argument_problems({key: config[key] for key in heavy}, "")])
    store = instantiate_node(config.data.store, "data")
    try:
        store.locate()
    except FileNotFoundError as error:
        raise UserError(str(error)) from error

    import torch

    torch.manual_seed(config.seed)
    network = instantiate_node(config.model, "model")
    raise_problems(list(argument_problems({key: config[key] for key in (*heavy, "data")}, "")))
    module = build_module(config, network)
    datamodule = instantiate_node(config.data.datamodule, "data")
    if not is_classifier_config(config):
        _require_guidable(config, typing.cast("DiffusionModule", module))
        _require_shape(config, typing.cast("DiffusionModule", module))
        _require_told(network, datamodule)
    else:
        _require_classified(config, network, datamodule)
    _load_images(datamodule, network.num_classes if is_classifier_config(config) else module.labels.num_classes)
    callbacks = list(_build_callbacks(config))
    loggers = [instantiate_node(node, f"logger.{name}") for name, node in config.logger.items() if node is not None]
    trainer = instantiate_node(config.trainer, "trainer", callbacks=callbacks, logger=loggers)
    accelerate(module.network)
    accelerate.apply_memory_format(module)  # averages too
    _require_even_shares(datamodule, trainer)
    return Run(module, datamodule, trainer, folder)


def _require_guidable(config: DictConfig, module: "DiffusionModule") -> None:
    guidance = instantiate_node(config.guidance, "guidance")
    try:
        guidance(module.denoiser(), module.labels)
    except ValueError as error:
        raise UserError(f"guidance_scale={config.guidance_scale}: {error}") from error


def _require_classified(config: DictConfig, network: Any, datamodule: "ImageDataModule") -> None:
    from diffusion_lab.callbacks.measure_accuracy import measured_images

    seen, wanted = (network.in_channels, network.resolution), (config.data.channels, config.data.resolution)
    if seen != wanted:
        raise UserError(
            f"model must see images of data.channels={wanted[0]} and data.resolution={wanted[1]}, got a network of "
            f"{seen[0]} channels and side {seen[1]}."
        )
    if config.data.label_column is None:
        raise UserError("data.label_column must name the column of the classes, got null.")
    try:
        measured_images(datamodule.store)  # that a split has no labels is said now, not at the first measurement
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def _require_shape(config: DictConfig, module: "DiffusionModule") -> None:
    wanted, shape = (config.data.channels, *[config.data.resolution] * 2), module.image_shape
    if tuple(shape) != wanted:
        raise UserError(
            f"model must answer images of data.channels={wanted[0]} and data.resolution={wanted[1]}, got "
            f"{type(module.network).__name__} in {type(module.space).__name__.lower()}, whose images are {list(shape)}."
        )
    clipping = getattr(module.sampler, "clipping", None)
    if type(module.space).__name__ != "Pixels" and type(clipping).__name__ != "NoClipping":
        raise UserError(f"clipping must be none for latents, which have no range, got {type(clipping).__name__}.")
    if config.low_resolution is not None and type(module.space).__name__ != "Pixels":
        raise UserError("low_resolution must be none for space=sd_latents, got an image of pixels.")


def _require_told(network: Any, datamodule: "ImageDataModule") -> None:
    parts = [part for part in (datamodule.augmentation, datamodule.low_resolution) if part is not None]
    told, known = sum(part.num_channels for part in parts), getattr(network, "num_augmentation_channels", 0)
    if told and known != told:  # a network that could be told is told of no augmentation
        raise UserError(
            f"model.num_augmentation_channels must be {told}, or the network would draw what the augmentation did, got "
            f"{known}."
        )
    low, channels = datamodule.low_resolution, getattr(network, "low_resolution_channels", 0)
    wanted = 0 if low is None else network.in_channels
    if channels != wanted:
        raise UserError(
            f"model.low_resolution_channels must be {wanted} where low_resolution is "
            f"{'none' if low is None else 'an image of so many channels'}, got {channels}."
        )
    if low is not None and low.resolution >= network.resolution:
        raise UserError(
            f"low_resolution.resolution must be below data.resolution={network.resolution}, got {low.resolution}."
        )


def _load_images(datamodule: "ImageDataModule", num_classes: int) -> None:
    try:
        label = datamodule.train_images.label
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    if num_classes and len(label) and int(label.max()) >= num_classes:
        raise UserError(f"data.num_classes must be above the largest label, {int(label.max())}, got {num_classes}.")


def _build_callbacks(config: DictConfig) -> Iterator[Any]:
    from diffusion_lab.features import FeaturesUnavailableError

    for name, node in config.callbacks.items():
        if node is None:
            continue  # callbacks.sample_images=null switches it off
        try:
            callback = instantiate_node(node, f"callbacks.{name}")
            features = getattr(getattr(callback, "metric", None), "features", None)
            if features is not None and config.data.channels not in features.channels:
                channels = " or ".join(map(str, features.channels))
                raise UserError(
                    f"features must suit the images: {features.name} takes {channels} channels, got "
                    f"data.channels={config.data.channels}; try features=inception."
                )
            yield callback
        except FeaturesUnavailableError as error:
            print(f"note: this run goes on without callbacks.{name}: {error}", file=sys.stderr)


def _require_even_shares(datamodule: "ImageDataModule", trainer: "Trainer") -> None:
    from diffusion_lab.data.step_sampler import require_even_shares

    try:
        require_even_shares(
            datamodule.batch_size, trainer.num_devices * trainer.num_nodes, trainer.accumulate_grad_batches
        )
    except ValueError as error:
        raise UserError(str(error)) from error

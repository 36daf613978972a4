"""Config -> the objects of a run.

Torch and Lightning are imported inside functions, in the order of what they cost: a refused config must not wait.
"""

import logging
import re
import sys
import typing
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffusion_lab import layout
from diffusion_lab.config_check import UserError, refuse, wrong_arguments

NEARLY_NOISE = 0.05
"""The largest alpha / sigma at the end of a schedule that passes without a word: DDPM's is 0.006, EDM's 0.0125."""

if TYPE_CHECKING:
    from lightning import Trainer

    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.lightning_module import DiffusionModule


@dataclass(frozen=True)
class Run:
    """The objects of one training run."""

    module: "DiffusionModule"
    datamodule: "ImageDataModule"
    trainer: "Trainer"
    folder: Path


def build(config: DictConfig) -> Run:
    """The run that a config describes; everything that can be wrong with it is said before any data is decoded.

    Ordered by what a check costs: the files of the data, then the network (torch), then all the rest (Lightning).
    Raises UserError.
    """
    config = resolved(config)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**63:
        raise UserError(f"seed must be a whole number in 0..2^63 - 1, got {config.seed}.")
    for name, least in (("gradient_clip_val", 0), ("accumulate_grad_batches", 1)):
        value = config.trainer.get(name)
        if isinstance(value, (int, float)) and value < least:
            raise UserError(f"trainer.{name} must be at least {least}, got {value}.")
    require_layout(config.trainer)
    folder = Path(config.run_folder)
    heavy = ("callbacks", "logger", "trainer", "metrics", "features")
    light = {key: node for key, node in config.items() if key not in heavy and key != "data"}
    problems = list(wrong_arguments(config.data.store, "data.store")) + list(wrong_arguments(light, ""))
    if problems:
        refuse([*problems, *wrong_arguments({key: config[key] for key in heavy}, "")])
    store = instantiated(config.data.store, "data")
    try:
        store.locate()
    except FileNotFoundError as error:
        raise UserError(str(error)) from error

    import torch

    torch.manual_seed(config.seed)
    network = instantiated(config.model, "model")
    refuse(list(wrong_arguments({key: config[key] for key in (*heavy, "data")}, "")))
    module = _build_module(config, network)
    datamodule = instantiated(config.data.datamodule, "data")
    _require_told(network, datamodule)
    _load_images(datamodule, module.labels.num_classes)
    callbacks = list(_build_callbacks(config))
    loggers = [instantiated(node, f"logger.{name}") for name, node in config.logger.items() if node is not None]
    trainer = instantiated(config.trainer, "trainer", callbacks=callbacks, logger=loggers)
    _require_even_shares(datamodule, trainer)
    return Run(module, datamodule, trainer, folder)


def load_module(folder: Path, checkpoint: str = "last.ckpt") -> "DiffusionModule":
    """The trained module of a run folder, on the CPU, ready to `sample`.

    Raises UserError where the folder holds no run or no such checkpoint.
    """
    return with_weights(saved_config(folder, checkpoint), folder / "checkpoints" / checkpoint)


def saved_config(folder: Path, *checkpoints: str) -> DictConfig:
    """The config that a run was trained with.  Raises UserError where the folder holds no run or no such checkpoint."""
    for file in (folder / "config.yaml", *(folder / "checkpoints" / checkpoint for checkpoint in checkpoints)):
        if not file.is_file():
            raise UserError(f"run must be the folder of a run, got {folder}: {file.relative_to(folder)} is missing.")
    return typing.cast(DictConfig, OmegaConf.load(folder / "config.yaml"))


def with_weights(config: DictConfig, checkpoint: Path) -> "DiffusionModule":
    """The module that a resolved config describes, with the weights of a checkpoint, on the CPU."""
    from diffusion_lab import checkpoint_files

    module = untrained_module(config)
    try:
        module.load_state_dict(checkpoint_files.read_run(checkpoint)["state_dict"])
    except checkpoint_files.DamagedCheckpointError as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{checkpoint} does not fit the network that config.yaml beside it describes: {reason}"
        ) from error
    return module


def untrained_module(config: DictConfig) -> "DiffusionModule":
    """The module that a resolved config describes, on the CPU."""
    return _build_module(config, instantiated(config.model, "model"))


def resolved(config: DictConfig) -> DictConfig:
    """The config without interpolations.  Raises UserError where a value is missing or refers to nothing."""
    try:
        return typing.cast(
            DictConfig, OmegaConf.create(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        )
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given, got nothing.") from error
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error


def _build_module(config: DictConfig, network: Any) -> "DiffusionModule":
    quieten()
    from diffusion_lab.lightning_module import DiffusionModule

    schedule = instantiated(config.schedule, "schedule")  # first by itself: its mistakes are said under its own name
    remaining = schedule.remaining_signal
    if remaining > NEARLY_NOISE:
        print(
            f"warning: schedule does not end in noise: x_T keeps alpha / sigma = {remaining:.2g} of the image, but "
            "sampling starts from pure noise; more steps or larger variances take it away.",
            file=sys.stderr,
        )
    variance = instantiated(config.variance, "variance")
    parts = ("process", "prediction", "objective", "times", "ema", "optimizer", "sampler", "guard")
    objects = {part: instantiated(config[part], part) for part in parts}
    try:
        variance.require(network.in_channels, network.out_channels)
        module = DiffusionModule(network, objects.pop("process"), **objects)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        module.denoiser(config.guidance_scale)
    except ValueError as error:
        raise UserError(f"guidance_scale={config.guidance_scale}: {error}") from error
    return module


def require_layout(trainer: DictConfig) -> None:
    """Raises UserError unless a trainer is of the processes that were started."""
    node = OmegaConf.to_container(trainer, resolve=True)
    assert isinstance(node, dict)
    try:
        layout.require(node.get("devices", 1), node.get("num_nodes", 1), node.get("strategy"))
    except layout.LayoutError as error:
        raise UserError(str(error)) from error


def _require_told(network: Any, datamodule: "ImageDataModule") -> None:
    if datamodule.augmentation is None:
        return  # a network that could be told is told of no augmentation
    told, known = datamodule.augmentation.num_channels, getattr(network, "num_augmentation_channels", 0)
    if known != told:
        raise UserError(
            f"model.num_augmentation_channels must be {told}, or the network would draw what the augmentation did, got "
            f"{known}."
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
            callback = instantiated(node, f"callbacks.{name}")
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


def instantiated(node: Any, path: str, **extra: Any) -> Any:
    """The object that a node describes.  Raises UserError where its constructor refuses a value."""
    from diffusion_lab.features import FeaturesUnavailableError

    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, FeaturesUnavailableError):
            raise cause from None
        if isinstance(cause, (ValueError, TypeError, OSError)) or type(cause).__name__ == "MisconfigurationException":
            where = re.search(r"full_key: (\S+)", str(error))
            key = where[1] if where else path
            shown = key if key.startswith(path) else f"{path}.{key}"  # a node by itself names its own keys alone
            raise UserError(f"{shown}: {' '.join(str(cause).split())}") from error
        raise


def quieten() -> None:
    """Silences what Lightning says at every start and what does not hold for this framework."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are gathers from memory
    warnings.filterwarnings("ignore", message=".*srun. command is available.*")  # a run of one process is as good
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode.*")  # the average never trains
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # the run folder holds Hydra's files
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # inside Lightning itself
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # of 1 x 1 convolutions
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)

"""Config -> objects, and the folder of a run -> its trained module.

Torch and Lightning are imported inside functions, in the order of what they cost: a refused config must not wait.
"""

import logging
import re
import sys
import typing
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffusion_lab.config.earlier_versions import current_config
from diffusion_lab.distributed import launch
from diffusion_lab.errors import UserError
from diffusion_lab.paths import ROOT

NEARLY_NOISE = 0.05
"""The largest alpha / sigma at the end of a schedule that passes without a word: DDPM's is 0.006, EDM's 0.0125."""

if TYPE_CHECKING:
    from diffusion_lab.training.classifier_module import ClassifierModule
    from diffusion_lab.training.diffusion_module import DiffusionModule


def load_module(folder: Path, checkpoint: str = "last.ckpt") -> "DiffusionModule":
    """The trained module of a run folder, on the CPU, ready to `sample`.

    Raises UserError where the folder holds no run or no such checkpoint.
    """
    module: DiffusionModule = load_weights(load_config(folder, checkpoint), folder / "checkpoints" / checkpoint)
    return module


def find_run(name: str, word: str) -> tuple[Path, str]:
    """The run folder that a setting names, as itself or by one of its checkpoints, and the checkpoint's file name.

    It may be named from here or from the project's own folder, as in the config of a run that was started there.
    Raises UserError where there is no such run.
    """
    path = next((path for path in (Path(word).expanduser(), ROOT / word) if path.exists()), Path(word))
    folder, checkpoint = (path.parent.parent, path.name) if path.suffix == ".ckpt" else (path, "last.ckpt")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{name} must be the folder of a run, got {word}: {folder / 'config.yaml'} is missing.")
    return folder, checkpoint


def load_config(folder: Path, *checkpoints: str) -> DictConfig:
    """The config that a run was trained with.  Raises UserError where the folder holds no run or no such checkpoint."""
    for file in (folder / "config.yaml", *(folder / "checkpoints" / checkpoint for checkpoint in checkpoints)):
        if not file.is_file():
            raise UserError(f"run must be the folder of a run, got {folder}: {file.relative_to(folder)} is missing.")
    return read_config(folder / "config.yaml")


def read_config(path: Path) -> DictConfig:
    """Read a saved config, whose names may be those of an earlier version."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return OmegaConf.create(current_config({str(key): value for key, value in content.items()}))


def load_weights(config: DictConfig, checkpoint: Path) -> Any:
    """The DiffusionModule or ClassifierModule of a resolve config, with the weights of a checkpoint, on the CPU."""
    from diffusion_lab import checkpoint_files

    module = build_untrained_module(config)
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


def build_untrained_module(config: DictConfig) -> Any:
    """The module that a resolve config describes, on the CPU."""
    return build_module(config, instantiate_node(config.model, "model"))


def is_classifier_config(config: DictConfig) -> bool:
    """Whether a config is one of src/train_classifier.py: it has nothing that says how images are drawn."""
    return "objective" not in config


def resolve(config: DictConfig) -> DictConfig:
    """The config without interpolations.  Raises UserError where a value is missing or refers to nothing."""
    try:
        return typing.cast(
            DictConfig, OmegaConf.create(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        )
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given, got nothing.") from error
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error


def build_module(config: DictConfig, network: Any) -> Any:
    """The DiffusionModule or ClassifierModule of a resolve config and its network.  Raises UserError."""
    silence_lightning()
    schedule = instantiate_node(
        config.schedule, "schedule"
    )  # first by itself: its mistakes are said under its own name
    return _classifier_module(config, network) if is_classifier_config(config) else _module(config, network, schedule)


def _module(config: DictConfig, network: Any, schedule: Any) -> "DiffusionModule":
    from diffusion_lab.training.diffusion_module import DiffusionModule

    if not hasattr(network, "out_channels"):
        raise UserError(
            f"model must be a network that answers images, got {type(network).__name__}, which answers classes: "
            "src/train_classifier.py trains it."
        )
    remaining = schedule.remaining_signal
    if remaining > NEARLY_NOISE:
        print(
            f"warning: schedule does not end in noise: x_T keeps alpha / sigma = {remaining:.2g} of the image, but "
            "sampling starts from pure noise; more steps or larger variances take it away.",
            file=sys.stderr,
        )
    variance = instantiate_node(config.variance, "variance")
    parts = ("prediction", "objective", "times", "ema", "optimizer", "lr_schedule", "sampler", "guard", "space")
    objects = {part: instantiate_node(config.get(part), part) for part in ("process", *parts)}
    try:
        variance.require(network.in_channels, network.out_channels)
        return DiffusionModule(network, objects.pop("process"), **objects)
    except ValueError as error:
        raise UserError(str(error)) from error


def _classifier_module(config: DictConfig, network: Any) -> "ClassifierModule":
    from diffusion_lab.training.classifier_module import ClassifierModule

    if not hasattr(network, "num_classes"):
        raise UserError(
            f"model must be a network that answers classes (half_unet), got {type(network).__name__}, which answers "
            "images: src/train.py trains it."
        )
    parts = ("process", "times", "optimizer", "lr_schedule", "guard")
    objects = {part: instantiate_node(config.get(part), part) for part in parts}
    return ClassifierModule(network, objects.pop("process"), **objects)


def require_launch(trainer: DictConfig) -> None:
    """Raises UserError unless a trainer is of the processes that were started."""
    node = OmegaConf.to_container(trainer, resolve=True)
    assert isinstance(node, dict)
    try:
        launch.validate(node.get("devices", 1), node.get("num_nodes", 1), node.get("strategy"))
    except launch.LaunchError as error:
        raise UserError(str(error)) from error


def instantiate_node(node: Any, path: str, **extra: Any) -> Any:
    """The object that a node describes.  Raises UserError where its constructor refuses a value."""
    from diffusion_lab.features import FeaturesUnavailableError

    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (FeaturesUnavailableError, UserError)):
            raise cause from None
        if isinstance(cause, (ValueError, TypeError, OSError)) or type(cause).__name__ == "MisconfigurationException":
            where = re.search(r"full_key: (\S+)", str(error))
            key = where[1] if where else path
            shown = key if key.startswith(path) else f"{path}.{key}"  # a node by itself names its own keys alone
            raise UserError(f"{shown}: {' '.join(str(cause).split())}") from error
        raise


def silence_lightning() -> None:
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

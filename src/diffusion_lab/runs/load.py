"""Construction of objects from a config, and loading of trained modules from run folders.

Torch and Lightning are imported inside functions, so that invalid settings are rejected without their import time.
"""

import contextlib
import logging
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffusion_lab.config.compose import error_message
from diffusion_lab.config.earlier_versions import current_config
from diffusion_lab.config.library_classes import import_target
from diffusion_lab.config.program import command_line
from diffusion_lab.config.saved_files import read_saved
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.contracts import require_instance
from diffusion_lab.errors import UserError
from diffusion_lab.runs.find import find_run
from diffusion_lab.runs.lightning_messages import silence_lightning
from diffusion_lab.runs.saved_modules import building_saved, require_similar_size
from diffusion_lab.runs.trust import is_recorded, require_trusted

if TYPE_CHECKING:
    from diffusion_lab.training.classifier_module import ClassifierModule
    from diffusion_lab.training.diffusion_module import DiffusionModule

logger = logging.getLogger(__name__)

NOT_BUILT = ("callbacks", "logger", "trainer")
"""Parts of the config of a run that only training builds."""

MAX_REMAINING_SIGNAL = 0.05
"""Largest alpha / sigma at the end of a schedule that causes no warning: DDPM has 0.006 and EDM has 0.0125."""


def load_module(run: str | Path, checkpoint: str | None = None, *, trust: Sequence[str] = ()) -> "DiffusionModule":
    """Load the trained module of a run, on the CPU; its method `sample` generates images.

    run: run folder, such as "logs/train/my_run", a checkpoint file in it, or any other form that the setting `run` of
        the commands accepts, such as "last".
    checkpoint: file name of a checkpoint in the run folder; None selects last.ckpt, or the file that `run` names.
    trust: packages, such as ["my_project"], whose code the config of the run may name.
    Raises UserError if there is no such run or checkpoint, or if the config names code that is not trusted.

    >>> from diffusion_lab import load_module
    >>> module = load_module(run_folder)
    >>> list(module.sample(range(4)).shape)  # image k has seed k
    [4, 1, 14, 14]
    """
    from diffusion_lab.runs import class_names

    target = find_run("run", run, checkpoint=checkpoint)
    config = load_config(target.folder, trust=[trust] if isinstance(trust, str) else trust)
    module: DiffusionModule = load_weights(config, target.checkpoint)
    module.class_names = class_names.load(target.folder)
    module.trained_classes = class_names.load_trained(target.folder, config, module.num_classes)
    return module


def load_config(folder: Path, *, trust: Sequence[str] = ()) -> DictConfig:
    """Return the config of a run, from which its module and its data are built.

    trust: trusted packages, in addition to those of the setting `trust`.
    Raises UserError if the folder has no config.yaml, or if it names code that the user does not trust.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"run folder {folder} has no config.yaml.")
    config = read_config(folder / "config.yaml")
    plain: Any = OmegaConf.to_container(config)
    require_trusted({key: node for key, node in plain.items() if key not in NOT_BUILT}, folder, trust=trust)
    return config if is_recorded(folder) else OmegaConf.create(_without_places(plain))


def _without_places(node: Any) -> Any:
    """Return a plain config without the folders in which another user caches images, or finds those of a table."""
    if isinstance(node, dict):
        places = ("cache_folder", "image_root")
        return {key: None if key in places else _without_places(child) for key, child in node.items()}
    return [_without_places(child) for child in node] if isinstance(node, list) else node


def read_config(path: Path) -> DictConfig:
    """Read a saved config and replace names from earlier package versions by the current names."""
    return OmegaConf.create(current_config(read_saved(path, dict)))


def load_weights(config: DictConfig, checkpoint: Path) -> Any:
    """Build the module of a resolved config on the CPU and load the weights of a checkpoint.

    Raises UserError if the checkpoint is damaged or does not match the network.
    """
    return load_checkpoint(config, checkpoint)[0]


def load_checkpoint(config: DictConfig, checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """Return the module of `load_weights`, and the content of the checkpoint that it was loaded from.

    The file is read once, because training may replace it at any time: the step in the content is that of the weights.
    """
    from diffusion_lab import checkpoint_files
    from diffusion_lab.training.lora import merged_checkpoint

    try:
        content = merged_checkpoint(checkpoint_files.read_run(checkpoint), checkpoint)
        with building_saved(checkpoint, len(content["state_dict"])):
            require_similar_size(lambda: instantiate_node(config.model, "model"), content["state_dict"], checkpoint)
            module = build_untrained_module(config)
        module.load_state_dict(content["state_dict"])
    except checkpoint_files.DamagedCheckpointError as error:
        raise UserError(str(error)) from error
    except (RuntimeError, TypeError, AttributeError) as error:
        found = checkpoint_files.differing_entries(module.state_dict(), content["state_dict"])
        found = found or " ".join(str(error).split())
        raise UserError(
            f"`model` must have the tensors of {checkpoint}, got other tensors ({found[:300]}); the code of the "
            "network or the config.yaml of the run has changed."
        ) from error
    except FileNotFoundError as error:  # removed since the run was found
        raise UserError(str(error)) from error
    return module, content


def build_untrained_module(config: DictConfig) -> Any:
    """Build the DiffusionModule or ClassifierModule of a resolved config on the CPU."""
    return build_module(config, instantiate_node(config.model, "model"))


def is_classifier_config(config: DictConfig) -> bool:
    """Return whether a config belongs to the command train_classifier: such a config has no denoising objective."""
    return "objective" not in config


def resolve(config: DictConfig) -> DictConfig:
    """Resolve all interpolations of a config.  Raises UserError for missing values and undefined references."""
    return OmegaConf.create(resolved_values(config))


def resolved_values(config: DictConfig) -> dict[str, Any]:
    """Return the plain values of a resolved config.  Raises UserError as `resolve` does."""
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given, got no value.") from error
    except OmegaConfBaseException as error:
        raise UserError(error_message(error, "")) from error


def build_module(config: DictConfig, network: Any) -> Any:
    """Build the DiffusionModule or ClassifierModule of a resolved config around its network.

    Raises UserError if a constructor rejects its settings, or if parts of the module do not fit each other.
    """
    from diffusion_lab.process import NoiseSchedule

    silence_lightning()
    # The schedule is built separately first, so that its errors are reported under `schedule`, not `process.schedule`.
    schedule = instantiate_node(config.schedule, "schedule")
    require_kind(schedule, NoiseSchedule, "schedule")
    if is_classifier_config(config):
        return _build_classifier_module(config, network)
    return _build_diffusion_module(config, network, schedule)


def _build_diffusion_module(config: DictConfig, network: Any, schedule: Any) -> "DiffusionModule":
    from diffusion_lab.process import Variance
    from diffusion_lab.training.diffusion_module import DiffusionModule

    _require_network(network, classifier=False)
    remaining = schedule.remaining_signal
    if remaining > MAX_REMAINING_SIGNAL:
        logger.warning(
            "schedule does not end in noise: alpha / sigma of x_T is %.2g, but sampling starts from pure noise; use "
            "more steps or larger variances.",
            remaining,
        )
    variance = instantiate_node(config.variance, "variance")
    require_kind(variance, Variance, "variance")
    parts = ("process", "prediction", "objective", "times", "ema", "sampler", "guard", "space")
    objects = {part: instantiate_node(config.get(part), part) for part in parts} | build_optimization(config)
    try:
        variance.require(network.in_channels, network.out_channels)
        module = DiffusionModule(network, objects.pop("process"), **objects)
    except ValueError as error:
        raise UserError(str(error)) from error
    module.augmentation = instantiate_node(config.get("augmentation"), "augmentation")
    return module


def _build_classifier_module(config: DictConfig, network: Any) -> "ClassifierModule":
    from diffusion_lab.training.classifier_module import ClassifierModule

    _require_network(network, classifier=True)
    parts = ("process", "times", "guard")
    objects = {part: instantiate_node(config.get(part), part) for part in parts} | build_optimization(config)
    try:
        return ClassifierModule(network, objects.pop("process"), **objects)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_optimization(config: DictConfig) -> dict[str, Any]:
    """Build the optimizer factory and the learning-rate schedule of a config, by the names of their config keys.

    Raises UserError for settings that the classes do not accept.
    """
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from diffusion_lab.training import OptimizerFactory, TorchLRSchedule

    optimizer = _build_from_class(config.optimizer, "optimizer", Optimizer, OptimizerFactory)
    schedule = config.get("lr_schedule")
    lr_schedule = _build_from_class(schedule, "lr_schedule", LRScheduler, TorchLRSchedule)
    return {"optimizer": optimizer, "lr_schedule": lr_schedule or instantiate_node(schedule, "lr_schedule")}


def _build_from_class(node: DictConfig | None, path: str, base: type, build: Callable[..., Any]) -> Any:
    """Return build(CLASS, **ARGUMENTS) if the target of a node is a subclass of `base`, else None."""
    target = import_target(str(node._target_)) if node is not None else None
    if node is None or not (isinstance(target, type) and issubclass(target, base)):
        return None
    arguments = OmegaConf.masked_copy(node, [str(key) for key in node if key != "_target_"])
    try:
        return build(target, **instantiate_node(arguments, path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _require_network(network: Any, *, classifier: bool) -> None:
    """Raise UserError unless a network can be trained by this command.

    classifier: whether the attributes of a `ClassifierNetwork` are required, and not those of a `Network`.
    """
    from diffusion_lab.networks import ClassifierNetwork, Network, require_network

    required, other = (ClassifierNetwork, Network) if classifier else (Network, ClassifierNetwork)
    try:
        require_network(network, required, "model")
    except ValueError as error:
        command = "train" if classifier else "train_classifier"
        with contextlib.suppress(ValueError):
            require_network(network, other)
            raise UserError(
                f"`model` must implement diffusion_lab.networks.{required.__name__}, got {type(network).__name__}, "
                f"which is a {other.__name__}; `{command_line(command)}` trains it."
            ) from error
        raise UserError(str(error)) from error


def instantiate_node(node: Any, path: str, **extra: Any) -> Any:
    """Instantiate a config node.  Raises UserError if the constructor rejects a value.

    path: path of the node in the config, for the error message.  extra: further arguments of the constructor.
    """
    from diffusion_lab.features import FeaturesUnavailableError

    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ImportError) and "Error locating target" in str(error):
            raise_problems(list(argument_problems(node, path)))
            raise UserError(f"{path}: {' '.join(str(cause).split()).rstrip('.')}.") from error
        if isinstance(cause, (FeaturesUnavailableError, UserError)):
            raise cause from None
        if isinstance(cause, AttributeError) and "Module.__init__() call" in str(cause):  # torch's message
            raise UserError(f"{path}: __init__ of {node._target_} must begin with super().__init__().") from error
        if (
            isinstance(cause, (ValueError, TypeError, OSError, ImportError))
            or type(cause).__name__ == "MisconfigurationException"
        ):
            match = re.search(r"full_key: (\S+)", str(error))
            key = match[1] if match else path
            full_key = key if key.startswith(path) else f"{path}.{key}"  # keys of a detached node are relative to it
            raise UserError(f"{full_key}: {' '.join(str(cause).split())}") from error
        raise


def require_kind(value: Any, base: type, path: str) -> None:
    """Raise UserError unless an object that a config describes is an instance of `base`.  path: path of its node."""
    try:
        require_instance(value, base, path)
    except ValueError as error:
        raise UserError(str(error)) from error

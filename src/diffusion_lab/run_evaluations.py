"""Config of an evaluation + run folders -> the objects that measure them.

Torch and Lightning are imported inside functions: a refused config must not wait for them.
"""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config_check import UserError, refuse, wrong_arguments
from diffusion_lab.layout import environment
from diffusion_lab.runs import instantiated, quieten, require_layout, resolved, saved_config, with_weights

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.data.image_store import Images, ImageStore
    from diffusion_lab.evaluation import Evaluation
    from diffusion_lab.lightning_module import DiffusionModule
    from diffusion_lab.metrics.mean_over_images import MeanOverImages
    from diffusion_lab.metrics.metric import Metric
    from diffusion_lab.reference import Reference
    from diffusion_lab.sampling import SampledImages

NO_RUN = "run must be the folder of a run (run=logs/train/...), got nothing."

PARTS = ("time_grid", "clipping", "variance")
"""What a sampler is made of beside its own settings, each a group."""


@dataclass(frozen=True)
class Target:
    """A checkpoint of a run, by its file."""

    folder: Path
    checkpoint: Path

    @property
    def name(self) -> str:
        """Of the run, and of the checkpoint where it is not the run's last."""
        last = self.checkpoint.name == "last.ckpt"
        return self.folder.name if last else f"{self.folder.name}_{self.checkpoint.stem}"


@dataclass(frozen=True)
class Measured:
    """The objects that measure one checkpoint.  step: of training, that it was saved after."""

    target: Target
    step: int
    evaluation: "Evaluation"
    metrics: list["Metric"]
    means: list[tuple["MeanOverImages", "Images"]]


def targets(config: DictConfig) -> list[Target]:
    """The checkpoints that `run` and `checkpoint` name.  Raises UserError where there are none."""
    if OmegaConf.is_missing(config, "run"):
        raise UserError(NO_RUN)
    words = config.run if OmegaConf.is_list(config.run) else [config.run]
    if not words:
        raise UserError(NO_RUN)
    folders = [folder for word in words for folder in _folders(str(word))]
    return [Target(folder, file) for folder in folders for file in _checkpoints(folder, str(config.checkpoint))]


def _folders(word: str) -> list[Path]:
    if not glob.has_magic(word) or Path(word).is_dir():
        return [Path(word).expanduser()]
    found = sorted(path for path in map(Path, glob.glob(os.path.expanduser(word))) if (path / "config.yaml").is_file())
    if not found:
        raise UserError(f"run must be the folder of a run, or a pattern of such, got {word}, which meets none.")
    return found


def _checkpoints(folder: Path, word: str) -> list[Path]:
    if not glob.has_magic(word):
        saved_config(folder, word)
        return [folder / "checkpoints" / word]
    saved_config(folder)
    found = sorted((folder / "checkpoints").glob(word))
    if not found:
        raise UserError(f"checkpoint must be a file in {folder / 'checkpoints'}, or a pattern, got {word}.")
    return found


def launch(config: DictConfig) -> "Fabric":
    """Starts the processes that config.trainer asks for, or joins those that somebody started.  Raises UserError."""
    from lightning import Fabric

    quieten()
    require_layout(config.trainer)
    settings = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    try:
        fabric = Fabric(
            **{key: config.trainer[key] for key in settings if key in config.trainer}, plugins=[environment()]
        )
    except Exception as error:  # a refused layout is an error of many kinds
        raise UserError(f"trainer: {' '.join(str(error).split()).rstrip('.!')}.") from error
    fabric.launch()
    if config.trainer.precision == "32-true":
        _round_as_float32()
    return fabric


def _round_as_float32() -> None:
    """CuDNN's default for float32 is TF32, of 10 bits, and in another order of sums at every start."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def load(config: DictConfig, target: Target, fabric: "Fabric") -> Measured:
    """What a config asks to be measured of a checkpoint.  Raises UserError.

    A sampler, or a part of one, that the config names takes the place of the run's own.
    """
    trained = configured(config, target)
    trained.metrics, trained.num_samples = config.metrics, config.num_samples
    named = {key: value for key, value in config.features.items() if value is not None}
    trained.features = named if "_target_" in named else {**trained.features, **named}
    trained = resolved(trained)
    refuse([problem for key in ("sampler", "metrics") for problem in wrong_arguments(trained[key], key)])
    store = instantiated(trained.data.store, "data")

    from diffusion_lab.evaluation import Evaluation

    module, step = load_module(config, trained, target)
    try:
        store.locate()
        metrics, means = _metrics(trained, store)
        reference = _reference(config.reference, store) if any(m.needs_reference for m in metrics) else None
        evaluation = Evaluation(
            _sampled_images(config, trained, module.to(fabric.device)),
            reference,
            config.num_samples,
            seed=config.seed,
            precision=str(config.trainer.precision),
        )
        evaluation.require(metrics)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    return Measured(target, step, evaluation, metrics, means)


def configured(config: DictConfig, target: Target) -> DictConfig:
    """The run's config, with the sampler that `config` names in place of its own; not resolved."""
    trained = saved_config(target.folder)
    _put_in_place(trained, config)
    return trained


def load_module(config: DictConfig, trained: DictConfig, target: Target) -> tuple["DiffusionModule", int]:
    """The module of a checkpoint, and the step that it was saved after.  Raises UserError."""
    from diffusion_lab import checkpoint_files
    from diffusion_lab.ema import PowerFunctionDecay

    module = with_weights(trained, target.checkpoint)  # says so where the file is damaged
    checkpoint = checkpoint_files.read_run(target.checkpoint, mmap=True)
    if "reconstructed" in checkpoint:  # holds one average under all names
        if config.weights is not None:
            raise UserError(
                f"weights must be left out for checkpoint={target.checkpoint.name}, which holds nothing but the "
                f"reconstructed average, got {config.weights}."
            )
        module.ema.decays = dict.fromkeys(module.ema.decays, PowerFunctionDecay(checkpoint["reconstructed"]))
    return module.eval(), int(checkpoint["global_step"])


def load_images(config: DictConfig, target: Target, fabric: "Fabric") -> tuple["SampledImages", int]:
    """The images of a checkpoint as a config asks for them, and the step that it was saved after.  Raises UserError."""
    trained = resolved(configured(config, target))
    refuse(list(wrong_arguments(trained.sampler, "sampler")))
    module, step = load_module(config, trained, target)
    try:
        return _sampled_images(config, trained, module.to(fabric.device)), step
    except ValueError as error:
        raise UserError(str(error)) from error


def _sampled_images(config: DictConfig, trained: DictConfig, module: "DiffusionModule") -> "SampledImages":
    from diffusion_lab.sampling import SampledImages

    return SampledImages(
        module,
        label=config.label,
        guidance_scale=trained.guidance_scale,
        weights=config.weights,
        batch_size=config.batch_size,
    )


def work_folder(config: DictConfig, images: "SampledImages") -> Path:
    """Where finished batches are kept for the same images, whichever job asks for them."""
    return Path(config.work_folder) / images.identity(config.trainer.precision)[:16]


def leave(config: DictConfig, images: "SampledImages") -> None:
    """Removes the finished batches of a job that is done, unless they are to be kept; every process must ask."""
    from diffusion_lab.processes import Processes

    processes = Processes.of_this_job()
    processes.everyone(None)  # nobody reads them any more
    if not config.keep_images and processes.rank == 0 and images.folder is not None:
        shutil.rmtree(images.folder, ignore_errors=True)


def _put_in_place(trained: DictConfig, config: DictConfig) -> None:
    """Replaces the sampler of a trained run's config, or the parts of it, by what an evaluation names."""
    named = {part: config[part] for part in PARTS if part in config and config[part] is not None}
    for part, node in named.items():
        trained[part] = node
    if "_target_" in config.sampler:
        trained.sampler = config.sampler
    else:  # settings of the run's own sampler
        settings = {key: value for key, value in config.sampler.items() if value is not None}
        trained.sampler = {**trained.sampler, **settings, **{k: v for k, v in named.items() if k in trained.sampler}}
    if config.guidance_scale is not None:
        trained.guidance_scale = config.guidance_scale


def _metrics(
    trained: DictConfig, store: "ImageStore"
) -> tuple[list["Metric"], list[tuple["MeanOverImages", "Images"]]]:
    """The metrics of sets, with one network for each kind of features, and the means over images."""
    from diffusion_lab.metrics.mean_over_images import MeanOverImages

    networks: dict[str, Any] = {}
    metrics, means = [], []
    for name, node in trained.metrics.items():
        settings: dict[str, Any] = dict(node)
        shared = {}
        if "features" in settings:
            described = OmegaConf.to_container(settings.pop("features"))
            key = json.dumps(described, sort_keys=True)
            networks[key] = networks.get(key) or instantiated(described, "features")
            shared["features"] = networks[key]
            _require_channels(networks[key], trained.data.channels)
        metric = instantiated(settings, f"metrics.{name}", **shared)
        if isinstance(metric, MeanOverImages):
            metric.split = metric.split or ("test" if "test" in store.splits() else "train")
            means.append((metric, store.load(metric.split)))  # what is not there is said before hours of sampling
        else:
            metrics.append(metric)
    return metrics, means


def _require_channels(features: Any, channels: int) -> None:
    if channels not in features.channels:
        accepted = " or ".join(map(str, features.channels))
        raise UserError(
            f"features must suit the images: {features.name} takes {accepted} channels, got data.channels={channels}; "
            "try features=inception."
        )


def _reference(word: str, store: "ImageStore") -> "Reference":
    from diffusion_lab.reference import FileReference, ImageReference

    if word.endswith(".npz"):
        return FileReference(Path(word).expanduser())
    if word != "train" and word not in store.splits():
        raise ValueError(
            f"reference must be one of {', '.join(store.splits())}, or a file of statistics (.npz), got {word}."
        )
    return ImageReference(store.load(word), word, store.cache.references)


def each(config: DictConfig, found: list[Target], fabric: "Fabric") -> Iterator[Measured]:
    """What is measured of each checkpoint, one after the other, once all are known to be in order."""
    if len(found) > 1:
        for target in found:
            load(config, target, fabric)  # a mistake in the last is said before the first is measured
    for target in found:
        yield load(config, target, fabric)

"""Config of sampling + run folders -> the images that their networks draw.

Torch and Lightning are imported inside functions: a refused config must not wait for them.
"""

import glob
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import compilation
from diffusion_lab.config.compilation import Acceleration
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.distributed.launch import cluster_environment
from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import (
    find_run,
    instantiate_node,
    is_classifier_config,
    load_config,
    load_weights,
    require_launch,
    resolve,
    silence_lightning,
)

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.generation.low_resolution_images import LowResolutionImages
    from diffusion_lab.generation.seeded_images import SeededImages
    from diffusion_lab.training.diffusion_module import DiffusionModule

NO_RUN = "run must be the folder of a run (run=logs/train/...), got nothing."

PARTS = ("time_grid", "clipping", "variance")
"""What a sampler is made of beside its own settings, each a group."""


GUIDANCE = ("guidance_scale", "guide", "classifier", "classifier_scale")
"""Words for guidance; what else there is of it stands under `guidance`."""


SINCE_0_2 = ("guidance", "space", "low_resolution")
"""What configs of runs of earlier versions do not have; their networks have other settings too."""


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


def find_targets(config: DictConfig) -> list[Target]:
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
        load_config(folder, word)
        return [folder / "checkpoints" / word]
    load_config(folder)
    found = sorted((folder / "checkpoints").glob(word))
    if not found:
        raise UserError(f"checkpoint must be a file in {folder / 'checkpoints'}, or a pattern, got {word}.")
    return found


def launch_fabric(config: DictConfig) -> "Fabric":
    """Starts the processes that config.trainer asks for, or joins those that somebody started.  Raises UserError."""
    from lightning import Fabric

    silence_lightning()
    require_launch(config.trainer)
    settings = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    try:
        fabric = Fabric(
            **{key: config.trainer[key] for key in settings if key in config.trainer}, plugins=[cluster_environment()]
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


def sampling_config(config: DictConfig, target: Target) -> DictConfig:
    """The run's config, with the sampler that `config` names in place of its own; not resolved."""
    trained = load_config(target.folder)
    if is_classifier_config(trained):
        raise UserError(
            f"run must be the folder of a run that draws images, got {target.folder}, which holds a classifier."
        )
    if missing := [name for name in SINCE_0_2 if name not in trained]:
        raise UserError(
            f"run must be of version 0.2 or later, got {target.folder}, whose config.yaml has no {missing[0]}: an "
            "earlier version trained it, and reads it."
        )
    _put_in_place(trained, config)
    return trained


def load_module(config: DictConfig, trained: DictConfig, target: Target) -> tuple["DiffusionModule", int]:
    """The module of a checkpoint, and the step that it was saved after.  Raises UserError."""
    from diffusion_lab import checkpoint_files
    from diffusion_lab.ema.averages import PowerFunctionDecay

    module = load_weights(trained, target.checkpoint)  # says so where the file is damaged
    checkpoint = checkpoint_files.read_run(target.checkpoint, mmap=True)
    if "reconstructed" in checkpoint:  # holds one average under all names
        if config.weights is not None:
            raise UserError(
                f"weights must be left out for checkpoint={target.checkpoint.name}, which holds nothing but the "
                f"reconstructed average, got {config.weights}."
            )
        module.ema.decays = dict.fromkeys(module.ema.decays, PowerFunctionDecay(checkpoint["reconstructed"]))
    return module.eval(), int(checkpoint["global_step"])


def build_images(config: DictConfig, target: Target, fabric: "Fabric") -> tuple["SeededImages", int]:
    """The images of a checkpoint as a config asks for them, and the step that it was saved after.  Raises UserError.

    Of a cascade they are those of its last stage.
    """
    trained = resolve(sampling_config(config, target))
    _require_effect(config, trained)
    raise_problems([problem for key in ("sampler", "guidance") for problem in argument_problems(trained[key], key)])
    module, step = load_module(config, trained, target)
    enlarging = [(stage, resolve(_of_stage(config, stage))) for stage in cascade_stages(config)]

    from diffusion_lab.generation.cascade import CascadeImages
    from diffusion_lab.generation.seeded_images import SeededImages

    settings = {"label": config.label, "weights": config.weights, "batch_size": config.batch_size}
    try:
        small = _shrunk(config, trained) if trained.low_resolution is not None else None
        guidance = instantiate_node(trained.guidance, "guidance")
        _accelerate(config, module.to(fabric.device))
        images = SeededImages(module, guidance=guidance, small=small, **settings)
        for number, (stage, of_stage) in enumerate(enlarging):
            if of_stage.low_resolution is None:
                raise UserError(
                    f"cascade must name runs for super-resolution (low_resolution=area), got {stage.folder}."
                )
            noise = config.low_resolution_noise if number == len(enlarging) - 1 else 0.0
            small = CascadeImages(images, instantiate_node(of_stage.low_resolution, "low_resolution"), noise)
            module = load_weights(of_stage, stage.checkpoint).eval().to(fabric.device)
            _accelerate(config, module)
            guidance = instantiate_node(of_stage.guidance, "guidance")
            images = SeededImages(module, guidance=guidance, small=small, batch_size=config.batch_size)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    return images, step


def _require_effect(config: DictConfig, trained: DictConfig) -> None:
    """Raises UserError for a setting that would change nothing."""
    if config.classifier_scale is not None and trained.classifier in (None, "none"):
        raise UserError(f"classifier must be given for classifier_scale={config.classifier_scale}, got none.")
    if config.cascade_steps is not None and not config.cascade:
        raise UserError(f"cascade must be given for cascade_steps={config.cascade_steps}, got none.")
    if config.low_resolution_noise and not config.cascade and trained.low_resolution is None:
        raise UserError(
            f"low_resolution_noise must be 0 for a run that enlarges nothing, got {config.low_resolution_noise}."
        )


def _accelerate(config: DictConfig, module: "DiffusionModule") -> None:
    from diffusion_lab.ema.averages import RAW

    accelerate = Acceleration.of(config.trainer)
    if accelerate.compile and config.weights == RAW:
        raise UserError(
            f"trainer.compile must be false for weights=raw, a fresh copy for each batch, got {accelerate.compile}."
        )
    accelerate.apply_memory_format(module)
    for average in module.ema.networks.values():
        accelerate(average)


def cascade_stages(config: DictConfig) -> list[Target]:
    """The runs that enlarge, in their order.  Raises UserError where one is missing."""
    words = config.cascade if OmegaConf.is_list(config.cascade) else [config.cascade] if config.cascade else []
    found = [find_run("cascade", str(word)) for word in words]
    for folder, checkpoint in found:
        load_config(folder, checkpoint)
    return [Target(folder, folder / "checkpoints" / checkpoint) for folder, checkpoint in found]


def _of_stage(config: DictConfig, stage: Target) -> DictConfig:
    """A run that enlarges, sampled as it was trained but for the number of steps."""
    trained = load_config(stage.folder)
    if is_classifier_config(trained):
        raise UserError(f"cascade must name runs for super-resolution, got {stage.folder}, which holds a classifier.")
    if config.cascade_steps is not None:
        trained.sampler.num_steps = config.cascade_steps
    return trained


def _shrunk(config: DictConfig, trained: DictConfig) -> "LowResolutionImages":
    """Images of the run's own data, for a network for super-resolution that no other run draws for."""
    from diffusion_lab.generation.low_resolution_images import DownsampledImages

    store = instantiate_node(trained.data.store, "data")
    split = "test" if "test" in store.splits() else "train"
    low_resolution = instantiate_node(trained.low_resolution, "low_resolution")
    if config.label is not None:
        raise UserError(f"label must be left out where the images of {split} bring their own, got {config.label}.")
    noise = 0.0 if config.cascade else config.low_resolution_noise
    return DownsampledImages(store.load(split), split, low_resolution, noise)


def work_folder(config: DictConfig, images: "SeededImages") -> Path:
    """Where finished batches are kept for the same images, whichever job asks for them."""
    return Path(config.work_folder) / images.identity(compilation.precision_name(config.trainer))[:16]


def remove_work_folder(config: DictConfig, images: "SeededImages") -> None:
    """Removes the finished batches of a job that is done, unless they are to be kept; every process must ask."""
    from diffusion_lab.distributed.collectives import Ranks

    ranks = Ranks.current()
    ranks.all_gather_object(None)  # nobody reads them any more
    if not config.keep_images and ranks.rank == 0 and images.folder is not None:
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
    for name in GUIDANCE:
        if config[name] is not None:
            trained[name] = trained.guidance[name] = config[name]
    for name, value in config.guidance.items():
        if value is not None:
            trained.guidance[name] = value

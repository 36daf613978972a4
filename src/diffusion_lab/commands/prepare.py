"""Prepare the images, features and weights of a run in advance, for nodes without internet access.

python src/prepare.py experiment=ddpm_cifar10 trainer=ddp                         # the same overrides as for train
python src/prepare.py data=imagenet256 space=sd_latents model=dit_xl 'metrics=[fid,kid]'
python src/prepare.py data=cifar10 callbacks.measure_distance=null                # no features and no reference

Results: decoded images and reference statistics are in the cache folder (data.cache_folder or DIFFUSION_LAB_CACHE),
weights are in the caches of the Hugging Face hub (HF_HOME) and of torch.hub (TORCH_HOME). Nothing is trained.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from diffusion_lab.commands import entry
from diffusion_lab.config.compose import in_sweep
from diffusion_lab.config.library_classes import drop_unused_settings
from diffusion_lab.config.overrides import given_overrides
from diffusion_lab.config.program import command_line
from diffusion_lab.errors import UserError
from diffusion_lab.runs import resume as run_resume
from diffusion_lab.runs.load import resolve, resolved_values
from diffusion_lab.runs.setup import evaluation as evaluation_setup
from diffusion_lab.runs.setup import training as training_setup
from diffusion_lab.runs.setup.trainer_settings import apply_trainer_settings

if TYPE_CHECKING:
    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.data.image_store import Images
    from diffusion_lab.features import Features

THIS_PROCESS = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}
"""Settings of a trainer that can be built on a login node, whatever the run will use."""

PLACES = (
    r"\+*(resume|fork|take_over|hydra\.run\.dir|hydra\.sweep\.(sub)?dir|hydra\.output_subdir|hydra[/.]launcher[\w.]*)="
)
"""Start of the overrides that define where a run is executed and stored."""


def prepare(config: DictConfig) -> None:
    """Build everything that a training run builds before its first step, and compute the reference statistics."""
    overrides = given_overrides()
    drop_unused_settings(config, overrides)
    apply_trainer_settings(config, overrides)
    measures = config.callbacks.get("measure_distance") is not None
    with open_dict(config):
        config.trainer.update({name: value for name, value in THIS_PROCESS.items() if name in config.trainer})
        config.logger, config.callbacks.measure_distance = {}, None
    run = training_setup.build(config)
    _print("images", _describe(run.datamodule.train_images, "train"))
    for name, source in _pretrained(resolved_values(config), ""):
        _print("weights", f"{name}: {source} in {_folder(source)}")
    if measures:
        _prepare_metrics(config, run.datamodule)
    else:
        _print("features", "none, because callbacks.measure_distance=null")
    if not in_sweep():
        print(f"ready: `{command_line('train')}` with the same overrides needs no internet access (HF_HUB_OFFLINE=1)")


def _prepare_metrics(config: DictConfig, datamodule: "ImageDataModule") -> None:
    """Load the feature networks of all metrics, and compute the statistics of the training images with them."""
    from diffusion_lab.evaluation.evaluator import required_outputs
    from diffusion_lab.features import FeaturesUnavailableError

    try:
        metrics, means = evaluation_setup.build_metrics(resolve(config), datamodule.store)
    except (FeaturesUnavailableError, ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    for features in required_outputs(metrics):
        _print("features", f"{features.name}: {features.weights_file}")
    for features, needs_rows in required_outputs(metrics, of_reference=True).items():
        _prepare_reference(features, needs_rows, datamodule)
    for features, needs_rows in required_outputs([metric for metric in metrics if metric.needs_held_out]).items():
        _prepare_training(features, needs_rows, datamodule)
    for metric, images in means:
        _print("images", f"for {metric.quantity.name}: {_describe(images, str(metric.split))}")


def _prepare_reference(features: "Features", needs_rows: dict[str, bool], datamodule: "ImageDataModule") -> None:
    import torch

    from diffusion_lab.evaluation.reference import ImageReference
    from diffusion_lab.reporting.progress import progress_bar

    features.to("cuda" if torch.cuda.is_available() else "cpu")
    reference = ImageReference(datamodule.train_images, "train", datamodule.store.cache.references)
    reference.feature_sets(features, needs_rows, progress_bar)
    for output in needs_rows:
        _print("reference", f"{features.name}, {output} features of train: {reference.file(features, output)}")


def _prepare_training(features: "Features", needs_rows: dict[str, bool], datamodule: "ImageDataModule") -> None:
    import torch

    from diffusion_lab.evaluation.training_reference import TrainingReference
    from diffusion_lab.reporting.progress import progress_bar

    features.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        training = TrainingReference.of(datamodule.store, datamodule.train_images)
    except ValueError as error:
        raise UserError(str(error)) from error
    training.feature_sets(features, needs_rows, progress_bar)
    for part in (training.training, training.held_out):
        for output in needs_rows:
            _print("reference", f"{features.name}, {output} features of {part.split}: {part.file(features, output)}")


def _describe(images: "Images", split: str) -> str:
    place = "generated in memory" if images.file is None else f"in {images.file.parent}"
    return f"{len(images):,} of {images.resolution} x {images.resolution} pixels ({split}), {place}"


def _pretrained(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the source of each node of a config that loads pretrained weights."""
    if isinstance(node, dict):
        source = node.get("pretrained_model_name_or_path")
        if source is not None and str(node.get("_target_", "")).endswith(".from_pretrained"):
            yield path, str(source)
        for key, child in node.items():
            yield from _pretrained(child, f"{path}.{key}".lstrip("."))


def _folder(source: str) -> Path:
    """Return the folder of pretrained weights: a local folder, or the cache of the Hugging Face hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(source).resolve() if Path(source).is_dir() else Path(HF_HUB_CACHE)


def _print(kind: str, text: str) -> None:
    print(f"{kind:<9} {text}", flush=True)


def _keep_only_settings_of_the_run() -> None:
    """Remove the overrides that define where a run is executed and stored, so that any command line of train works.

    resume=RUN is replaced by the saved overrides of the run.
    Raises UserError for a hyperparameter search, whose values are not known in advance.
    """
    if any(re.match(r"\+*hydra/sweeper=", argument) for argument in sys.argv[1:]):
        raise UserError(
            "prepare must be given values of all settings (lists such as seed=1,2 are accepted with -m), got "
            "hydra/sweeper=...; leave out the search space."
        )
    resumed = [argument for argument in sys.argv[1:] if re.match(r"\+*resume=", argument)]
    sys.argv[1:] = [*(argument for argument in sys.argv[1:] if not re.match(PLACES, argument)), *resumed]
    run_resume.restore_command_line("train")
    os.environ.pop("DIFFUSION_LAB_RESUMED", None)  # this command does not continue the run
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not re.match(PLACES, argument)]


def main() -> None:
    entry.entry("prepare", prepare, _keep_only_settings_of_the_run)


if __name__ == "__main__":
    main()

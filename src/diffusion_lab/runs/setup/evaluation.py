"""Setup of an evaluation: config and run folders -> the metrics and the images for each checkpoint.

Torch and Lightning are imported inside functions, so that invalid settings are rejected without their import time.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import compilation
from diffusion_lab.config.program import command_line
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.runs.find import Target
from diffusion_lab.runs.load import instantiate_node, require_kind, resolve
from diffusion_lab.runs.setup.condition import load_images
from diffusion_lab.runs.setup.image_sets import ImageSet
from diffusion_lab.runs.setup.reference import SampleFormat, build_reference, build_training
from diffusion_lab.runs.setup.sampling import build_images, config_of_images

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.data.image_store import Images, ImageStore
    from diffusion_lab.evaluation.evaluator import Evaluator
    from diffusion_lab.metrics.mean_over_images import MeanOverImages
    from diffusion_lab.metrics.metric import Metric


@dataclass(frozen=True)
class Measurement:
    """The objects for the evaluation of one checkpoint, or of one set of images.

    target: the checkpoint, or a set of images of unknown origin.  step: training step of the checkpoint.
    evaluation: evaluator of the images that the network generates, or of the images of the set.
    metrics: metrics of the set of images, such as FID.
    means: averages over images of the data set, such as bits per dimension, each with the images to average over.
    store: image set of the run; None if there is none.
    """

    target: Target | ImageSet
    step: int | None
    evaluation: "Evaluator"
    metrics: list["Metric"]
    means: list[tuple["MeanOverImages", "Images"]]
    store: "ImageStore | None"


def build(config: DictConfig, target: Target, fabric: "Fabric") -> Measurement:
    """Build the objects for the evaluation of a checkpoint with the metrics and settings in `config`.

    If `config` contains a sampler, or single settings of a sampler, they replace the settings in the config of the run.
    For a cascade, the data and the default features are those of the last super-resolution run.
    Raises UserError if a setting does not fit the run, or if a file of the run or of the data is missing.
    """
    trained = measured_config(config, target)
    trained.num_samples = config.num_samples
    trained = resolve(trained)
    raise_problems(list(argument_problems(trained.metrics, "metrics")))
    store = instantiate_node(trained.data.store, "data")

    from diffusion_lab.evaluation.evaluator import Evaluator

    images, step = build_images(config, target, fabric)
    with user_errors(config):
        store.locate()
        metrics, means = build_metrics(trained, store)
        needs_reference = any(metric.needs_reference for metric in metrics)
        sample_format = SampleFormat.of(config.preparation, trained.data.channels, images.shape[-1])
        reference = build_reference(config.reference, store, sample_format) if needs_reference else None
        evaluation = Evaluator(
            images,
            reference,
            config.num_samples,
            seed=config.seed,
            training=build_training(metrics, store),
            precision=compilation.precision_name(config.trainer),
        )
        evaluation.require(metrics)
    return Measurement(target, step, evaluation, metrics, means, store)


def measured_config(config: DictConfig, target: Target) -> DictConfig:
    """Return the config of the run that generates the final images, with the metrics and features of `config`."""
    trained = config_of_images(config, target)
    features = {key: value for key, value in config.features.items() if value is not None}
    trained.features = features if "_target_" in features else {**trained.features, **features}
    trained.metrics = config.metrics
    return trained


@contextmanager
def user_errors(config: DictConfig) -> Iterator[None]:
    """Raise the errors of settings, images and feature networks as UserError."""
    from diffusion_lab.features import FeaturesUnavailableError

    try:
        yield
    except FeaturesUnavailableError as error:
        raise UserError(str(error)) from error
    except FileNotFoundError as error:
        hint = "; data.path=FOLDER names the new place of moved images." if config.data.get("path") is None else ""
        raise UserError(f"{str(error).rstrip('.')}{hint if config.images is None else '.'}") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def build_metrics(
    trained: DictConfig, store: "ImageStore | None"
) -> tuple[list["Metric"], list[tuple["MeanOverImages", "Images"]]]:
    """Build the metrics of the set of generated images, and the averages over images of the data set.

    Metrics with equal `features` settings share one feature network.
    trained: config with metrics and data.channels; null accepts any number.  store: None without averages over images.
    """
    from diffusion_lab.metrics.edit_metric import EditMetric
    from diffusion_lab.metrics.mean_over_images import MeanOverImages
    from diffusion_lab.metrics.metric import Metric

    networks: dict[str, Any] = {}
    metrics, means = [], []
    for name, node in trained.metrics.items():
        settings: dict[str, Any] = dict(node)
        shared = {}
        if "features" in settings:
            features = OmegaConf.to_container(settings.pop("features"))
            key = json.dumps(features, sort_keys=True)
            networks[key] = networks.get(key) or instantiate_node(features, "features")
            shared["features"] = networks[key]
            _require_channels(networks[key], trained.data.channels)
        metric = instantiate_node(settings, f"metrics.{name}", **shared)
        if isinstance(metric, EditMetric):
            raise UserError(
                f"metrics must not contain {name}, which compares the results of an edit with their sources; "
                f"`{command_line('edit')}` measures it."
            )
        if isinstance(metric, MeanOverImages):
            assert store is not None
            metric.choice = str(name)
            metric.split = _split(metric.split, f"metrics.{name}.split", store)
            means.append((metric, load_images(trained, store, metric.split)))
        else:
            require_kind(metric, Metric, f"metrics.{name}")
            metrics.append(metric)
    return metrics, means


def _split(split: str | None, setting: str, store: "ImageStore") -> str:
    """Return the split of a mean over images; by default, a split whose images the network was not trained on.

    Raises UserError if the image set does not have the split.
    """
    splits = list(dict.fromkeys(("train", *store.splits())))
    if split is None:
        return next(name for name in ("test", "held_out", "train") if name in splits)
    if split not in splits:
        raise UserError(f"{setting} must be a split of the run's data set ({', '.join(splits)}), got {split}.")
    return split


def _require_channels(features: Any, channels: int | None) -> None:
    if channels is not None and channels not in features.channels:
        accepted = " or ".join(map(str, features.channels))
        raise UserError(
            f"`features` must accept images with data.channels={channels}, got {features.name}, which accepts "
            f"{accepted} channels; try features=inception."
        )


def build_each(config: DictConfig, targets: list[Target], fabric: "Fabric") -> Iterator[Measurement]:
    """Yield the `Measurement` of each checkpoint, after a check that all measurements can be built."""
    if len(targets) > 1:
        for target in targets:
            build(config, target, fabric)  # an error in the last checkpoint is raised before the first measurement
    for target in targets:
        yield build(config, target, fabric)

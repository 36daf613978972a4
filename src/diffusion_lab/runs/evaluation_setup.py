"""Config of an evaluation + run folders -> the objects that measure them.

Torch and Lightning are imported inside functions: a refused config must not wait for them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import compilation
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import instantiate_node, load_config, resolve
from diffusion_lab.runs.sampling_setup import Target, build_images, cascade_stages, sampling_config

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.data.image_store import Images, ImageStore
    from diffusion_lab.evaluation.evaluator import Evaluator
    from diffusion_lab.evaluation.reference import Reference
    from diffusion_lab.metrics.mean_over_images import MeanOverImages
    from diffusion_lab.metrics.metric import Metric


@dataclass(frozen=True)
class Measurement:
    """The objects that measure one checkpoint.  step: of training, that it was saved after."""

    target: Target
    step: int
    evaluation: "Evaluator"
    metrics: list["Metric"]
    means: list[tuple["MeanOverImages", "Images"]]


def build(config: DictConfig, target: Target, fabric: "Fabric") -> Measurement:
    """What a config asks to be measured of a checkpoint.  Raises UserError.

    A sampler, or a part of one, that the config names takes the place of the run's own.
    """
    trained = sampling_config(config, target) if not config.cascade else load_config(cascade_stages(config)[-1].folder)
    trained.metrics, trained.num_samples = config.metrics, config.num_samples
    named = {key: value for key, value in config.features.items() if value is not None}
    trained.features = named if "_target_" in named else {**trained.features, **named}
    trained = resolve(trained)
    raise_problems(list(argument_problems(trained.metrics, "metrics")))
    store = instantiate_node(trained.data.store, "data")

    from diffusion_lab.evaluation.evaluator import Evaluator

    images, step = build_images(config, target, fabric)
    try:
        store.locate()
        metrics, means = _metrics(trained, store)
        reference = _reference(config.reference, store) if any(m.needs_reference for m in metrics) else None
        evaluation = Evaluator(
            images,
            reference,
            config.num_samples,
            seed=config.seed,
            precision=compilation.precision_name(config.trainer),
        )
        evaluation.require(metrics)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    return Measurement(target, step, evaluation, metrics, means)


def _metrics(
    trained: DictConfig, store: "ImageStore"
) -> tuple[list["Metric"], list[tuple["MeanOverImages", "Images"]]]:
    """The metrics of sets, with one network for build_each kind of features, and the means over images."""
    from diffusion_lab.metrics.mean_over_images import MeanOverImages

    networks: dict[str, Any] = {}
    metrics, means = [], []
    for name, node in trained.metrics.items():
        settings: dict[str, Any] = dict(node)
        shared = {}
        if "features" in settings:
            described = OmegaConf.to_container(settings.pop("features"))
            key = json.dumps(described, sort_keys=True)
            networks[key] = networks.get(key) or instantiate_node(described, "features")
            shared["features"] = networks[key]
            _require_channels(networks[key], trained.data.channels)
        metric = instantiate_node(settings, f"metrics.{name}", **shared)
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
    from diffusion_lab.evaluation.reference import FileReference, ImageReference

    if word.endswith(".npz"):
        return FileReference(Path(word).expanduser())
    if word != "train" and word not in store.splits():
        raise ValueError(
            f"reference must be one of {', '.join(store.splits())}, or a file of statistics (.npz), got {word}."
        )
    return ImageReference(store.load(word), word, store.cache.references)


def build_each(config: DictConfig, found: list[Target], fabric: "Fabric") -> Iterator[Measurement]:
    """What is measured of build_each checkpoint, one after the other, once all are known to be in order."""
    if len(found) > 1:
        for target in found:
            build(config, target, fabric)  # a mistake in the last is said before the first is measured
    for target in found:
        yield build(config, target, fabric)

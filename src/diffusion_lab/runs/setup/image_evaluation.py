"""Setup of an evaluation without a run: images of unknown origin, or only the statistics of a reference.

Torch is imported inside functions, so that invalid settings are rejected without its import time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.library_classes import import_target
from diffusion_lab.config.validation import argument_problems, data_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF, expanduser
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs.load import instantiate_node, resolve
from diffusion_lab.runs.setup.evaluation import Measurement, build_metrics, user_errors
from diffusion_lab.runs.setup.image_sets import ImageSet, is_given, require_no_network
from diffusion_lab.runs.setup.reference import (
    SampleFormat,
    build_reference,
    build_training,
    require_path,
    run_store,
)

if TYPE_CHECKING:
    from lightning import Fabric

    from diffusion_lab.data.image_store import ImageStore
    from diffusion_lab.evaluation.reference import Reference
    from diffusion_lab.evaluation.training_reference import TrainingReference
    from diffusion_lab.metrics.metric import Metric


@dataclass(frozen=True)
class _Shared:
    """What all sets of images are measured with.

    reference, training: None if no metric needs them.  store: data set of the reference; None if it is a path.
    sample_format: format of the images.
    """

    metrics: "list[Metric]"
    reference: "Reference | None"
    training: "TrainingReference | None"
    store: "ImageStore | None"
    sample_format: SampleFormat


def build_each(config: DictConfig, sets: Sequence[ImageSet], fabric: "Fabric") -> Iterator[Measurement]:
    """Yield the `Measurement` of each set of images, after all sets are decoded.

    The sets share the metrics and the features of the reference.
    Raises UserError if a setting does not fit, or if images cannot be read.
    """
    from diffusion_lab.evaluation.evaluator import Evaluator
    from diffusion_lab.generation.indexed_images import StoredImages

    measurements = []
    with user_errors(config):
        shared = _build_shared(config)
        reference_features: dict[Any, Any] = {}
        for image_set in sets:
            images = shared.sample_format.store(image_set.source()).load("images")
            stored = StoredImages(
                images,
                shared.sample_format.protocol(images.resolution),
                batch_size=config.batch_size,
                device=fabric.device,
            )
            evaluation = Evaluator(
                stored,
                shared.reference,
                _num_samples(config, len(images), image_set),
                training=shared.training,
                precision=None,
                reference_features=reference_features,
            )
            evaluation.require(shared.metrics)
            measurements.append(Measurement(image_set, None, evaluation, shared.metrics, [], shared.store))
    yield from measurements


def save_statistics(config: DictConfig, fabric: "Fabric") -> Path:
    """Write the statistics of the reference to the file that `save_statistics` names, and return its path.

    Collective: call on all ranks.
    """
    from diffusion_lab.evaluation.evaluator import required_outputs
    from diffusion_lab.evaluation.reference import ImageReference
    from diffusion_lab.reporting.progress import progress_bar

    path = expanduser(str(config.save_statistics))
    if path.suffix != ".npz":
        raise UserError(f"`save_statistics` must be the path of an .npz file, got {terminal_text(str(path))}.")
    if config.images is not None:
        raise UserError(f"`images` must not be given together with `save_statistics`, got images={config.images}.")
    require_no_network(config, "save_statistics")
    with user_errors(config):
        shared = _build_shared(config)
        required = required_outputs(shared.metrics, of_reference=True)
        if len(required) != 1:
            names = ", ".join(features.name for features in required) or "none"
            raise UserError(f"`metrics` must use one feature network for `save_statistics`, got {names}.")
        if not isinstance(shared.reference, ImageReference):
            raise UserError(f"`reference` must be a set of images for `save_statistics`, got {config.reference}.")
        ((features, needs_rows),) = required.items()
        shared.reference.save(path, features.to(fabric.device), needs_rows, progress_bar)
    return path


def _build_shared(config: DictConfig) -> _Shared:
    value = str(config.reference)
    store, features = _data_store(config), {key: value for key, value in config.features.items() if value is not None}
    found = run_store(value) if store is None else None
    if found is not None:
        value, store = "train", found[1]
        features = features if "_target_" in features else {**found[0].features, **features}
    kinds = {name: import_target(node._target_) for name, node in config.metrics.items()}
    if store is None and any(kind.needs_reference for kind in kinds.values()):
        require_path(value)
    if store is None and (names := [str(name) for name, kind in kinds.items() if kind.needs_held_out]):
        raise UserError(
            f"`metrics` must not contain {names[0]} for {'no data set' if value == 'train' else f'reference={value}'}, "
            "because it compares images with training images and held-out images; data=NAME or reference=RUN names a "
            "data set that has both."
        )
    if "_target_" not in features:
        features = {**OmegaConf.load(CONF / "features" / "inception.yaml"), **features}
    channels = None if store is None else store.preparation.channels
    settings = {"metrics": config.metrics, "features": features, "data": {"channels": channels}}
    node = resolve(OmegaConf.create(settings))
    raise_problems(list(argument_problems(node.metrics, "metrics")))
    if store is not None:
        store.locate()
    metrics, _ = build_metrics(node, store)
    channels = channels or max(set.intersection(*({*metric.features.channels} for metric in metrics)))
    resolution = None if store is None else store.preparation.resolution
    sample_format, reference = SampleFormat.of(config.preparation, channels, resolution), None
    if any(metric.needs_reference for metric in metrics):
        reference = build_reference(value, store, sample_format)
        images = getattr(reference, "images", None)
        sample_format = SampleFormat.of(config.preparation, channels, images.resolution if images else None)
    training = None if store is None else build_training(metrics, store)
    return _Shared(metrics, reference, training, store, sample_format)


def _data_store(config: DictConfig) -> "ImageStore | None":
    """Return the image set that the setting `data` selects; None if it selects none."""
    if "store" not in config.data:
        given = [f"data.{key}={value}" for key, value in config.data.items() if value is not None]
        if given:
            raise UserError(f"`data` must be given for {given[0]}, such as data=folder, got no value.")
        return None
    data = OmegaConf.masked_copy(config.data, [str(key) for key in config.data if key != "datamodule"])
    data = resolve(OmegaConf.create({"data": data})).data
    raise_problems(list(data_problems(data)))
    store: ImageStore = instantiate_node(data.store, "data")
    return store


def _num_samples(config: DictConfig, size: int, image_set: ImageSet) -> int:
    """Return the number of images to measure: all, unless `num_samples` is given."""
    if not is_given("num_samples"):
        return size
    if config.num_samples > size:
        raise UserError(
            f"num_samples must be at most {size:,} (the number of images in {terminal_text(str(image_set.folder))}), "
            f"got {config.num_samples}."
        )
    return int(config.num_samples)

"""Estimates of the time that the metrics of an evaluation take in addition to the images."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.evaluation.evaluator import required_outputs
from diffusion_lab.evaluation.reference import BATCH_SIZE, ImageReference
from diffusion_lab.features import FashionCNN, Features
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.runs.cost.operations import measure_rates
from diffusion_lab.runs.cost.sampling import idle_ranks, pass_seconds_per_image
from diffusion_lab.runs.cost.training_line import duration
from diffusion_lab.runs.setup.evaluation import Measurement

logger = logging.getLogger(__name__)

MANY_SECONDS = 120
"""Duration of the features on a CPU above which the line names settings for a shorter evaluation."""

LONG_MEAN = 60
"""Seconds of a mean over images on a CPU above which the line names the number of images for a shorter measurement."""

SMALL_BATCH = 8
"""Images that a feature network is timed with on a CPU, where a large batch takes hardly less time per image."""

FASHION_SETS = ("fashion_mini", "fashion_mnist")
"""Names of the image sets on whose classes the features fashion_cnn were trained."""


def print_measuring_cost(measurement: Measurement, precision: str) -> None:
    """Print on rank 0 how long the features of images take, and the means over images of the data set.

    precision: precision of the trainer, such as bf16-mixed.
    """
    if Ranks.current().rank:
        return
    for line in (*_features_lines(measurement), *_means_lines(measurement, precision)):
        print(line, flush=True)


def seconds_per_image(features: Features, shape: tuple[int, int, int], device: torch.device) -> float:
    """Return the time of a feature network for an image of `shape` [C, H, W], measured on black images.

    The time is measured, because operation counts fail for these networks: their depthwise convolutions take several
    times as long on a CPU as their numbers of operations suggest.
    """
    features = features.to(device)
    seconds = _seconds(features, shape, 1, device)  # includes the time of starting the libraries
    if device.type == "cpu" and seconds > 1:
        return seconds
    size = SMALL_BATCH if device.type == "cpu" else BATCH_SIZE
    return min(_seconds(features, shape, size, device) for _ in range(2)) / size


def _seconds(features: Features, shape: tuple[int, int, int], size: int, device: torch.device) -> float:
    pixels = torch.zeros(size, *shape, dtype=torch.uint8, device=device)
    started = time.perf_counter()
    for output in features(pixels).values():
        output.cpu()  # waits for the device
    return time.perf_counter() - started


def _features_lines(measurement: Measurement) -> Iterator[str]:
    evaluation, metrics = measurement.evaluation, measurement.metrics
    device, shape = evaluation.images.device, evaluation.images.shape
    for features in required_outputs(metrics):
        needs_rows = required_outputs(metrics, of_reference=True).get(features)
        reference = evaluation.reference if needs_rows else None
        num_reference = reference.num_to_extract(features, needs_rows) if reference and needs_rows else 0
        training = evaluation.training
        needs_held_out = required_outputs([metric for metric in metrics if metric.needs_held_out]).get(features)
        num_training = training.num_to_extract(features, needs_held_out) if training and needs_held_out else 0
        num_images = num_reference + num_training + evaluation.num_samples
        try:
            seconds = num_images * seconds_per_image(features, shape, device) / Ranks.current().world_size
        except Exception as error:  # full devices raise errors of any type, which must not end a job
            logger.debug("the cost of the features could not be estimated: %s", error)
            continue
        line = f"cost of {features.name} features: about {duration(seconds)} for "
        if num_reference and isinstance(reference, ImageReference):
            line += f"all {num_reference:,} images of reference={reference.split} and "
        line += f"{num_training:,} training and held-out images and " if num_training else ""
        generated = "generated images" if isinstance(evaluation.images, SeededImages) else "images"
        line += f"{evaluation.num_samples:,} {generated}"
        if num_reference and isinstance(reference, ImageReference) and features.weights_sha256 is not None:
            line += f"; the reference statistics are stored for later evaluations in {reference.folder}"
        if device.type == "cpu" and seconds > MANY_SECONDS and (shorter := list(_shorter(measurement, features))):
            line += f"; shorter on a CPU: {', or '.join(shorter)}"
        yield line


def _shorter(measurement: Measurement, features: Features) -> Iterator[str]:
    """Yield settings with which the features take less time: other features, or a reference of fewer images."""
    store, reference = measurement.store, measurement.evaluation.reference
    if store is None:
        return
    if Path(str(store.source)).name in FASHION_SETS and features.name != FashionCNN.name:
        yield f"features={FashionCNN.name}"
    if isinstance(reference, ImageReference) and reference.split != "held_out":
        num_held_out = store.selection.num_held_out
        if 0 < num_held_out < len(reference.images):
            yield f"reference=held_out ({num_held_out:,} images)"
        others = [split for split in store.splits() if split not in ("train", "held_out", reference.split)]
        yield from (f"reference={split} if it has fewer images" for split in others)


def _means_lines(measurement: Measurement, precision: str) -> Iterator[str]:
    images, world_size = measurement.evaluation.images, Ranks.current().world_size
    for metric, data in measurement.means:
        assert isinstance(images, SeededImages)
        quantity, indices = metric.quantity, range(min(metric.num_images or len(data), len(data)))
        num_evaluations = getattr(quantity, "num_evaluations", None)
        count = "an unknown number of" if num_evaluations is None else f"{num_evaluations:,}"
        count = f"typically {count}" if getattr(quantity, "has_adaptive_steps", False) else count
        work = f"{len(indices):,} images of {metric.split} ({count} evaluations of the network each)"
        seconds = None
        try:
            rates = measure_rates(images.device, precision)
            one_pass = pass_seconds_per_image(images, rates, is_half="16" in precision)
            num_passes = getattr(quantity, "num_passes", num_evaluations)
            num_images = min(len(indices), images.batch_size * -(-len(indices) // (images.batch_size * world_size)))
            seconds = None if num_passes is None else num_images * num_passes * one_pass
        except Exception as error:  # networks and full devices raise errors of any type, which must not end a job
            logger.debug("the cost of %s could not be estimated: %s", quantity.name, error)
        line = f"cost of {quantity.name}: {'unknown' if seconds is None else f'about {duration(seconds)}'} for {work}"
        if seconds is not None and images.device.type == "cpu" and seconds > LONG_MEAN:
            fewer = _one_digit(len(indices) * LONG_MEAN / seconds)
            line += f"; shorter on a CPU: metrics.{metric.choice}.num_images={fewer}" if fewer < len(indices) else ""
        yield line
        if idle := idle_ranks([indices], images.batch_size, world_size):
            yield idle


def _one_digit(number: float) -> int:
    """Return a number rounded down to one digit, at least 1."""
    unit = int(10 ** (len(str(int(number))) - 1))
    return max(1, int(number) // unit * unit)

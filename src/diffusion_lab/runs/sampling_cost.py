"""Estimate of the time in which the images of a job of sample or evaluate are generated."""

import logging
from typing import Any

import torch

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.runs.cost import pass_seconds
from diffusion_lab.runs.cost_line import duration
from diffusion_lab.runs.network_check import black_images
from diffusion_lab.runs.operations import Rates, count_operations, measure_rates

logger = logging.getLogger(__name__)


def print_sampling_cost(images: SeededImages, num_images: int, precision: str, *, measures: bool = False) -> None:
    """Print how long num_images images take, unless there are none or the operations cannot be counted.

    precision: precision of the trainer, such as bf16-mixed.  measures: whether metrics of the images follow.
    """
    if not num_images:  # all images are reused
        return
    try:
        rates = measure_rates(images.module.device, precision)
        seconds = num_images * seconds_per_image(images, rates, is_half="16" in precision) / Ranks.current().world_size
    except Exception as error:  # networks and full devices raise errors of any type, which must not end a job
        logger.debug("the cost of the images could not be estimated: %s", error)
        return
    evaluations = f"{num_evaluations(images)} evaluations of the network each"
    if is_doubled(images):
        evaluations += f": {images.sampler.num_evaluations} times 2 for guidance"
    metrics = ", plus the time of the metrics" if measures else ""
    print(f"cost: about {duration(seconds)} for {num_images:,} images ({evaluations}){metrics}", flush=True)


def is_doubled(images: SeededImages) -> bool:
    """Return whether guidance evaluates the network twice at each time."""
    return images.guidance.strength.guidance_scale != 1


def num_evaluations(images: SeededImages) -> int:
    """Return the number of evaluations of the network for one image; guidance doubles it.

    In a cascade, only the network of the last stage is counted.
    """
    return images.sampler.num_evaluations * (2 if is_doubled(images) else 1)


def seconds_per_image(images: SeededImages, rates: Rates, *, is_half: bool) -> float:
    """Return the duration of one image on one rank, with all stages of a cascade but without classifier guidance.

    Raises any error of a network whose operations cannot be counted, see `count_operations`.
    """
    on_cpu = images.module.device.type == "cpu"
    operations = count_operations(images.module.network, _example_inputs(images), images.batch_size)
    one_pass = pass_seconds(operations, rates, is_half=is_half, on_cpu=on_cpu)
    previous = getattr(images.low_resolution_images, "images", None)
    earlier = seconds_per_image(previous, rates, is_half=is_half) if isinstance(previous, SeededImages) else 0.0
    return num_evaluations(images) * one_pass / images.batch_size + earlier


def _example_inputs(images: SeededImages) -> tuple[Any, ...]:
    """Return the arguments of the network for two black images at the last time of the schedule."""
    x_t, time = black_images(images.module)
    label = torch.zeros(2, dtype=torch.int64) if images.module.network.labels.num_classes else None
    return x_t, time, images.condition(x_t, label)

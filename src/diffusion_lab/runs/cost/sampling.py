"""Estimate of the time in which the images of a job of sample or evaluate are generated."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.edits import Restoration
from diffusion_lab.generation.edited_images import EditedImages
from diffusion_lab.generation.frame_images import FrameImages
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.runs.cost.operations import Rates, count_operations, measure_rates
from diffusion_lab.runs.cost.training import pass_seconds
from diffusion_lab.runs.cost.training_line import duration
from diffusion_lab.runs.setup.network_check import black_images

logger = logging.getLogger(__name__)

SampledImages = SeededImages | EditedImages | FrameImages


def print_sampling_cost(
    images: SampledImages, seeds: Sequence[range], precision: str, *, measures: bool = False
) -> None:
    """Print how long the images of `seeds` take without cached batches, unless the operations cannot be counted.

    seeds: seeds of the job on all ranks.  precision: precision of the trainer, such as bf16-mixed.
    measures: whether metrics of the images follow.
    """
    world_size = Ranks.current().world_size
    batches = [batch for part in seeds for batch in images.batches(part)]
    if not batches:
        print("no images are generated, because no metric needs samples; num_pictures=80 generates a grid", flush=True)
    left = {batch for batch in batches if not images.is_cached(batch)}
    if not left:
        return
    if idle := idle_ranks(seeds, images.batch_size, world_size):
        print(idle, flush=True)
    # Each batch is generated completely, and the other ranks wait for the rank with the largest number of batches.
    num_batches = max(
        sum(batch in left for batch in Ranks(rank, world_size).shard(batches)) for rank in range(world_size)
    )
    try:
        rates = measure_rates(images.module.device, precision)
        seconds = num_batches * images.batch_size * seconds_per_image(images, rates, is_half="16" in precision)
    except Exception as error:  # networks and full devices raise errors of any type, which must not end a job
        logger.debug("the cost of the images could not be estimated: %s", error)
        return
    evaluations = f"{num_evaluations(images)} evaluations of the network each"
    if images.sampler.has_adaptive_steps:
        evaluations = f"typically {evaluations}"
        if isinstance(getattr(images, "task", None), Restoration):  # its flow is less smooth than that of the network
            evaluations += ", often several times as many given a measurement"
    if is_doubled(images):
        evaluations += f": {images.num_evaluations} times 2 for guidance"
    num_left = sum(map(len, left))
    batched = f" in complete batches of {images.batch_size:,}" if len(left) * images.batch_size > num_left else ""
    metrics = ", plus the time of the metrics" if measures else ""
    print(f"cost: about {duration(seconds)} for {num_left:,} images{batched} ({evaluations}){metrics}", flush=True)


def idle_ranks(seeds: Sequence[range], batch_size: int, world_size: int) -> str | None:
    """Return a sentence about ranks without a batch and the batch_size that gives each rank a batch, or None."""

    def num_batches(size: int) -> int:
        return sum(-(-part.stop // size) - part.start // size for part in seeds if part)

    num_images, num_idle = sum(map(len, seeds)), world_size - num_batches(batch_size)
    if num_idle < 1 or not num_images:
        return None
    sizes = range(min(batch_size, -(-num_images // world_size)), 0, -1)
    size = next((size for size in sizes if num_batches(size) >= world_size), None)
    remedy = f"batch_size={size} gives each rank a batch" if size else "fewer ranks are sufficient"
    idle = "1 rank has" if num_idle == 1 else f"{num_idle:,} ranks have"
    given = f"batch_size={batch_size} for {num_images:,} image{'' if num_images == 1 else 's'}"
    return f"{idle} no images to process, because of {given} on {world_size:,} ranks; {remedy}."


def is_doubled(images: SampledImages) -> bool:
    """Return whether guidance evaluates the network twice at each time."""
    return images.guidance.strength.guidance_scale != 1


def num_evaluations(images: SampledImages) -> int:
    """Return the number of evaluations of the network for one image; guidance doubles it.

    In a cascade, only the network of the last stage is counted.
    """
    return images.num_evaluations * (2 if is_doubled(images) else 1)


def seconds_per_image(images: SampledImages, rates: Rates, *, is_half: bool) -> float:
    """Return the duration of one image on one rank, with all stages of a cascade but without classifier guidance.

    Raises any error of a network whose operations cannot be counted, see `count_operations`.
    """
    previous = getattr(images.condition_images, "images", None)
    earlier = seconds_per_image(previous, rates, is_half=is_half) if isinstance(previous, SampledImages) else 0.0
    num_passes = images.num_passes * (2 if is_doubled(images) else 1)
    return num_passes * pass_seconds_per_image(images, rates, is_half=is_half) + earlier


def pass_seconds_per_image(images: SampledImages, rates: Rates, *, is_half: bool) -> float:
    """Return the duration of a forward pass of the network for a batch, divided by the batch size.

    Raises any error of a network whose operations cannot be counted, see `count_operations`.
    """
    operations = count_operations(images.module.network, _example_inputs(images), images.batch_size)
    on_cpu = images.module.device.type == "cpu"
    return pass_seconds(operations, rates, is_half=is_half, on_cpu=on_cpu) / images.batch_size


def _example_inputs(images: SampledImages) -> tuple[Any, ...]:
    """Return the arguments of the network for two black images at the last time of the schedule."""
    x_t, time = black_images(images.module)
    label = torch.zeros(2, dtype=torch.int64) if images.module.network.labels.num_classes else None
    paired = x_t.new_zeros(2, images.module.network.condition_channels, *x_t.shape[2:])
    return x_t, time, images.condition(x_t, label, paired, range(2))

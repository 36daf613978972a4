"""Conversion of plain batches, such as (images, labels) from any data loader, to the batches of a training step."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import Draws

logger = logging.getLogger(__name__)

PlainBatch = Tensor | Sequence[Any] | Mapping[str, Any]
"""Batch of a data loader: images, (images,), (images, labels), or a dict with the keys `image` and `label`.

The keys IMAGE_KEYS and LABEL_KEYS are accepted. Labels are optional for an unconditional network, which ignores them.
images: uint8 or float in [-1, 1], [B, C, H, W].
labels: integers [B], or a `Condition` if the network is also conditioned on an augmentation or an image.
"""

IMAGE_KEYS = ("image", "images", "pixel_values")
LABEL_KEYS = ("label", "labels", "condition")

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

OUTSIDE = 1e-3
"""Largest distance of float pixels from [-1, 1] that counts as a rounding error."""


class PlainBatches:
    """Conversion of plain batches to `ImageBatch`, with random numbers that depend on the seed, the step and positions.

    Image i in the batch of rank r has the position i * world_size + r in the global batch. This is the order of
    torch.utils.data.DistributedSampler, so that one rank with the global batch has the same random numbers. If a step
    accumulates several batches, the positions of a batch follow those of the previous batch.

    seed: seed of the random numbers, in 0..2^63 - 1.
    has_converted: whether a batch has been converted. Pixel values and labels are checked in the first batch only,
        because reading them waits for the device.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be a whole number in 0..2^63 - 1, got {seed}.")
        self.seed, self.has_converted, self._next_position = seed, False, 0

    def convert(
        self,
        batch: PlainBatch,
        *,
        shape: Sequence[int],
        num_classes: int,
        step: int,
        part: int = 0,
        num_parts: int = 1,
    ) -> ImageBatch:
        """Return the images as float32 in [-1, 1], with their labels and random numbers.

        shape: shape of one image, [C, H, W].  num_classes: number of classes; 0 if the network takes no labels.
        step: number of the step.  part: index of the batch among the num_parts batches that the step accumulates.
        Raises ValueError if the images or the labels do not have the required type, shape or values.
        """
        images, condition = _split(batch)
        _require_shape(images, shape)
        size = len(images)
        if not num_classes and condition.label is not None and not self.has_converted:
            _note_unused_labels()
        label = _label(condition.label, num_classes, images, check_values=not self.has_converted)
        x_0 = _as_float(images, check_values=not self.has_converted)
        draws = Draws(self.seed, step, self._positions(size, part), size * num_parts * Ranks.current().world_size)
        self.has_converted = True
        others = condition.augmentation, condition.image, condition.low_resolution_noise
        return ImageBatch(x_0, label, draws, *others)

    def _positions(self, size: int, part: int) -> range:
        ranks, first = Ranks.current(), self._next_position if part else 0
        self._next_position = first + size * ranks.world_size
        return range(first + ranks.rank, self._next_position, ranks.world_size)


def with_float_images(batch: ImageBatch, shape: Sequence[int]) -> ImageBatch:
    """Return a batch with float images; uint8 images, which `ImageDataModule` loads, are converted to [-1, 1].

    shape: shape of one image, [C, H, W].  Raises ValueError if the images have another shape.
    """
    _require_shape(batch.x_0, shape)
    return batch if batch.x_0.is_floating_point() else replace(batch, x_0=_as_float(batch.x_0, check_values=False))


def _split(batch: Any) -> tuple[Tensor, Condition]:
    """Return images and condition of a batch.  Raises ValueError if the batch has another structure."""
    if isinstance(batch, Mapping):
        images = [batch[key] for key in IMAGE_KEYS if key in batch]
        labels = [batch[key] for key in LABEL_KEYS if key in batch]
        if len(images) != 1 or len(labels) > 1:
            raise ValueError(
                f"a batch that is a dict must have one of the keys {', '.join(IMAGE_KEYS)}, and at most one of the "
                f"keys {', '.join(LABEL_KEYS)}, got {', '.join(map(str, batch)) or 'no keys'}."
            )
        parts = [*images, *labels]
    else:
        parts = [batch] if torch.is_tensor(batch) else list(batch) if isinstance(batch, (list, tuple)) else []
    if not 1 <= len(parts) <= 2 or not torch.is_tensor(parts[0]):
        found = f"({', '.join(type(part).__name__ for part in parts)})" if parts else type(batch).__name__
        raise ValueError(f"a batch must be images, (images, labels) or a dict of them, got {found}.")
    label = parts[1] if len(parts) == 2 else None
    return parts[0], label if isinstance(label, Condition) else Condition(label)


def _require_shape(images: Tensor, shape: Sequence[int]) -> None:
    channels, height, width = shape
    if images.ndim == 4 and tuple(images.shape[1:]) == tuple(shape) and len(images):
        return
    remedy = ""
    if channels == 1 and tuple(images.shape[1:]) == (height, width):
        remedy = "; add the channels with images.unsqueeze(1)"
    elif tuple(images.shape[1:]) == (height, width, channels):
        remedy = "; move the channels with images.permute(0, 3, 1, 2)"
    raise ValueError(
        f"images must be [B, {channels}, {height}, {width}] for this network, got {list(images.shape)}{remedy}."
    )


def _as_float(images: Tensor, *, check_values: bool) -> Tensor:
    """Return images as float32 in [-1, 1].  check_values: whether to check the values of float images."""
    if images.dtype == torch.uint8:
        return from_uint8(images)
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or float in [-1, 1], got {images.dtype}.")
    if check_values:
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= -1 - OUTSIDE and high <= 1 + OUTSIDE):
            found = f"values from {low:g} to {high:g}" if low == low else "NaN"
            raise ValueError(
                f"float images must be in [-1, 1], got {found}; pass uint8 images, or scale and clip the values."
            )
        if low >= 0:
            _warn_about_range(low, high)
    return images.float()


@rank_zero_only
def _warn_about_range(low: float, high: float) -> None:
    logger.warning(
        "the first batch has pixel values from %.3g to %.3g, but black is -1 and white is 1; if the images are in "
        "[0, 1], pass 2 * images - 1.",
        low,
        high,
    )


@rank_zero_only
def _note_unused_labels() -> None:
    logger.warning(
        "the batches have labels, which this network ignores; a network with labels=Labels(10, dropout=0.1) is "
        "conditioned on 10 classes."
    )


def _label(label: Any, num_classes: int, images: Tensor, *, check_values: bool) -> Tensor:
    """Return labels, int64 [B]; they are 0 if the network takes none.  check_values: whether to check their range."""
    size = len(images)
    if not num_classes:
        return torch.zeros(size, dtype=torch.int64, device=images.device)
    if label is None:
        raise ValueError(
            f"a batch must be (images, labels) for this network, which is conditioned on {num_classes} classes, got no "
            "labels."
        )
    if not isinstance(label, Tensor) or label.dtype not in INTEGERS or tuple(label.shape) != (size,):
        found = f"{label.dtype} {list(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
        raise ValueError(f"labels must be integers [{size}], one class per image, got {found}.")
    if check_values and not bool(((label >= 0) & (label < num_classes)).all()):
        low, high = (int(value) for value in label.aminmax())
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got labels from {low} to {high}.")
    return label.long()

"""Statistics of an image set: shape, classes, pixel values, constant images and duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.duplicates import (
    NearDuplicates,
    Pair,
    downsample,
    image_digests,
    same_bytes,
    same_bytes_between,
)
from diffusion_lab.data.image_files import file_name
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images


@dataclass(frozen=True)
class ChannelValues:
    """Values of one channel over all pixels of all images, in 0..255.

    share_0, share_255: fractions of the pixels with these values, in [0, 1].
    """

    smallest: int
    largest: int
    mean: float
    std: float
    share_0: float
    share_255: float


@dataclass(frozen=True)
class Duplicates:
    """Duplicates within a set.

    same_bytes: pairs of an image (first) and one of its exact copies (second).
    near: pairs of nearly identical images, by ascending ratio. Of exact copies, only one image is compared.
    num_compared: number of images that were searched for near duplicates.
    """

    same_bytes: tuple[Pair, ...]
    near: tuple[Pair, ...]
    num_compared: int


@dataclass(frozen=True)
class Overlap(Duplicates):
    """Images (first) with a duplicate in another set (second).

    num_others: number of images in the other set.
    num_others_compared: number of images in the other set that were searched for near duplicates.
    """

    num_others: int
    num_others_compared: int


@dataclass(frozen=True)
class Inspection:
    """Statistics of a set.

    class_counts: number of images by class name; empty for a set without classes.
    constant: indices of the images with a single color.  overlap: None if no other set was given.
    """

    num_images: int
    channels: int
    height: int
    width: int
    class_counts: dict[str, int]
    values: tuple[ChannelValues, ...]
    constant: tuple[int, ...]
    duplicates: Duplicates
    overlap: Overlap | None


@dataclass(frozen=True)
class Scan:
    """Statistics that are collected in one pass over a set.

    histogram: number of pixels with each value, int64 [C, 256].  constant: whether each image has one color, bool [N].
    digests: digest of the bytes of each image, uint64 [N].
    compared: indices of the images among which near duplicates are searched, int64 [M].
    downsampled: the downsampled images with these indices, uint8 [M, C, h, w].
    """

    histogram: Tensor
    constant: np.ndarray
    digests: np.ndarray
    compared: np.ndarray
    downsampled: Tensor

    def distinct(self, others: np.ndarray | None = None) -> tuple[Tensor, np.ndarray]:
        """Return the downsampled images, one of each group of exact copies, and their indices in the set.

        others: digests of images that are also left out, uint64 [K]; None leaves out only exact copies.
        """
        digests = self.digests[self.compared]
        kept = np.sort(np.unique(digests, return_index=True)[1])
        if others is not None:
            kept = kept[~np.isin(digests[kept], others)]
        return self.downsampled[torch.from_numpy(kept)], self.compared[kept]


def inspect(images: Images, others: Images | None = None, search: NearDuplicates | None = None) -> Inspection:
    """Compute the statistics of `images` and their overlap with `others`.  Each image is read once, in batches.

    search: search for near duplicates; None uses `NearDuplicates()`.
    Raises ValueError if a set is empty or if the images of the two sets differ in shape.
    """
    search = search or NearDuplicates()
    scanned = scan(images, search)
    channels, height, width = images.gather(torch.tensor([0])).shape[1:]
    return Inspection(
        num_images=len(images),
        channels=channels,
        height=height,
        width=width,
        class_counts=class_counts(images),
        values=tuple(_values(row) for row in scanned.histogram),
        constant=tuple(np.flatnonzero(scanned.constant).tolist()),
        duplicates=_duplicates(scanned, search),
        overlap=None if others is None else _overlap(scanned, scan(others, search), search),
    )


def scan(images: Images, search: NearDuplicates, batch_size: int = 256) -> Scan:
    """Collect the statistics of a set in one pass.  Raises ValueError if the set is empty."""
    if not len(images):
        raise ValueError("a set must contain at least 1 image to be inspected, got 0.")
    compared = search.choose(len(images))
    rows = np.full(len(images), -1)  # row of each image in `downsampled`, or -1
    rows[compared] = np.arange(len(compared))
    constant, digests = np.empty(len(images), dtype=bool), np.empty(len(images), dtype=np.uint64)
    histogram, downsampled, start = None, None, 0
    for pixels in images.batches(batch_size):
        part = slice(start, start + len(pixels))
        digests[part] = image_digests(pixels)
        constant[part] = (pixels.flatten(2).amin(2) == pixels.flatten(2).amax(2)).all(1).numpy()
        histogram = _histogram(pixels) + (0 if histogram is None else histogram)
        chosen = np.flatnonzero(rows[part] >= 0)
        small = downsample(pixels[torch.from_numpy(chosen)])
        downsampled = small.new_empty(len(compared), *small.shape[1:]) if downsampled is None else downsampled
        downsampled[torch.from_numpy(rows[part][chosen])] = small
        start += len(pixels)
    assert histogram is not None
    assert downsampled is not None
    return Scan(histogram, constant, digests, compared, downsampled)


def file_names(store: ImageStore, split: str, numbers: Sequence[int]) -> dict[int, str]:
    """Return the file names of the images with the indices `numbers` of a split; "" if the set does not store them."""
    source_split = store.selection.source_split(split)
    in_source = store.load_numbered(source_split)[1][store.load(split).index]
    with TemporaryDirectory() as work_folder:
        images = replace(store.source).open(source_split, Path(work_folder)).images
        return {number: file_name(images, int(in_source[number])) for number in numbers}


def size_statistics(sizes: np.ndarray, resolution: int) -> dict[str, Any] | None:
    """Return the smallest, median and largest width, and the same for the height; None without sizes.

    sizes: width and height of each image, [N, 2].
    The result also has the number of images, and the number of images whose shorter side is below `resolution`.
    """
    if not len(sizes):
        return None
    ordered = np.sort(sizes, axis=0)
    chosen = {"smallest": 0, "median": len(ordered) // 2, "largest": -1}
    return {
        "num_images": len(sizes),
        **{
            side: {name: int(ordered[position, column]) for name, position in chosen.items()}
            for column, side in enumerate(("width", "height"))
        },
        "resolution": resolution,
        "num_below_resolution": int((sizes.min(axis=1) < resolution).sum()),
    }


def class_counts(images: Images) -> dict[str, int]:
    """Return the number of images by class name, including classes without images.

    The result is empty for a set without class names in which all labels are equal.
    """
    counts = dict.fromkeys(images.class_names, 0)
    labels, numbers = np.unique(images.label.numpy(), return_counts=True)
    if not counts and len(labels) == 1:
        return {}
    found = zip(labels.tolist(), numbers.tolist(), strict=True)
    return counts | {class_name(images, label): number for label, number in found}


def class_name(images: Images, label: int) -> str:
    """Return the class name of a label, or the label itself as text if it has no name."""
    return images.class_names[label] if 0 <= label < len(images.class_names) else str(label)


def _duplicates(scanned: Scan, search: NearDuplicates) -> Duplicates:
    groups = same_bytes(scanned.digests)
    copies = tuple(Pair(group[0], copy) for group in groups for copy in group[1:])
    downsampled, numbers = scanned.distinct()
    near = tuple(_with_numbers(pair, numbers, numbers) for pair in search.within(downsampled))
    return Duplicates(copies, near, len(scanned.compared))


def _overlap(scanned: Scan, others: Scan, search: NearDuplicates) -> Overlap:
    shapes = [tuple(each.downsampled.shape[1:]) for each in (scanned, others)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"images of both sets must have the same shape, got {shapes[0]} and {shapes[1]}.")
    copies = tuple(same_bytes_between(scanned.digests, others.digests))
    downsampled, numbers = scanned.distinct()
    other_downsampled, other_numbers = others.distinct(scanned.digests)
    pairs = search.between(downsampled, other_downsampled)
    near = tuple(_with_numbers(pair, numbers, other_numbers) for pair in pairs)
    return Overlap(copies, near, len(scanned.compared), len(others.digests), len(others.compared))


def _with_numbers(pair: Pair, numbers: np.ndarray, others: np.ndarray) -> Pair:
    """Replace the indices in a pair of downsampled images by the indices of the two images in their sets.

    numbers, others: index of each downsampled image in the set of the first and of the second image, respectively.
    """
    first, second = int(numbers[pair.first]), int(others[pair.second])
    if numbers is others and first > second:
        first, second = second, first
    return replace(pair, first=first, second=second)


def _histogram(pixels: Tensor) -> Tensor:
    """Count the pixels with each value 0..255, separately for each channel: int64 [C, 256]."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(1)])


def _values(histogram: Tensor) -> ChannelValues:
    fraction = histogram.double() / histogram.sum()
    level = torch.arange(256, dtype=torch.float64)
    mean = (fraction * level).sum()
    std = (fraction * (level - mean).square()).sum().sqrt()
    found = histogram.nonzero().squeeze(1)
    return ChannelValues(
        int(found[0]), int(found[-1]), float(mean), float(std), float(fraction[0]), float(fraction[-1])
    )

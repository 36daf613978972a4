"""What is in an image set: sizes, classes, values, and images that are there twice."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.duplicates import NearDuplicates, Pair, reduced, same_bytes, same_bytes_between
from diffusion_lab.data.images import Images


@dataclass(frozen=True)
class ChannelValues:
    """Values of one channel over all pixels of all images, in 0..255.  share_0, share_255: of the pixels, in [0, 1]."""

    smallest: int
    largest: int
    mean: float
    std: float
    share_0: float
    share_255: float


@dataclass(frozen=True)
class Duplicates:
    """Images that are there twice.  num_compared: images among which near duplicates were looked for.

    same_bytes: a pair of each further copy (second) with the first.  near: without the former, nearest first.
    """

    same_bytes: tuple[Pair, ...]
    near: tuple[Pair, ...]
    num_compared: int


@dataclass(frozen=True)
class Overlap(Duplicates):
    """Images (first) that are also in another set (second), which has num_others and num_others_compared images."""

    num_others: int
    num_others_compared: int


@dataclass(frozen=True)
class Inspection:
    """What is in a set.  class_counts: by name, empty for a set without classes.  constant: numbers of the images
    whose pixels are all alike.  overlap: None where no other set was given.
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
    """What one pass over a set leaves in memory.

    histogram: int64 [C, 256].  constant: bool [N].  digests: uint64 [N], of each image's bytes.
    compared: numbers of the images that are compared [M], int64.  pictures: those images, reduced, uint8 [M, C, h, w].
    """

    histogram: Tensor
    constant: np.ndarray
    digests: np.ndarray
    compared: np.ndarray
    pictures: Tensor

    def unlike(self, others: np.ndarray | None = None) -> tuple[Tensor, np.ndarray]:
        """The compared pictures and their numbers without repeated bytes, nor any of the digests `others`."""
        digests = self.digests[self.compared]
        kept = np.sort(np.unique(digests, return_index=True)[1])
        if others is not None:
            kept = kept[~np.isin(digests[kept], others)]
        return self.pictures[torch.from_numpy(kept)], self.compared[kept]


def inspect(images: Images, others: Images | None = None, search: NearDuplicates | None = None) -> Inspection:
    """What is in `images`, and which of them are in `others` too.  Reads each image once, a batch at a time.

    Raises ValueError where a set is empty or the two are of different shapes.
    """
    search = search or NearDuplicates()
    mine = scan(images, search)
    channels, height, width = images.gather(torch.tensor([0])).shape[1:]
    return Inspection(
        num_images=len(images),
        channels=channels,
        height=height,
        width=width,
        class_counts=class_counts(images),
        values=tuple(_values(row) for row in mine.histogram),
        constant=tuple(np.flatnonzero(mine.constant).tolist()),
        duplicates=_duplicates(mine, search),
        overlap=None if others is None else _overlap(mine, scan(others, search), search),
    )


def scan(images: Images, search: NearDuplicates, batch_size: int = 256) -> Scan:
    """One pass over a set.  Raises ValueError where it is empty."""
    if not len(images):
        raise ValueError("a set must hold at least 1 image to be inspected, got none.")
    compared = search.choice(len(images))
    place = np.full(len(images), -1)
    place[compared] = np.arange(len(compared))
    constant, digests = np.empty(len(images), dtype=bool), np.empty(len(images), dtype=np.uint64)
    histogram, pictures, start = None, None, 0
    for pixels in images.batches(batch_size):
        part = slice(start, start + len(pixels))
        digests[part] = _digests(pixels)
        constant[part] = (pixels.flatten(2).amin(2) == pixels.flatten(2).amax(2)).all(1).numpy()
        histogram = _histogram(pixels) + (0 if histogram is None else histogram)
        chosen = np.flatnonzero(place[part] >= 0)
        small = reduced(pixels[torch.from_numpy(chosen)])
        pictures = small.new_empty(len(compared), *small.shape[1:]) if pictures is None else pictures
        pictures[torch.from_numpy(place[part][chosen])] = small
        start += len(pixels)
    assert histogram is not None
    assert pictures is not None
    return Scan(histogram, constant, digests, compared, pictures)


def class_counts(images: Images) -> dict[str, int]:
    """Images of each class by its name, 0 for a class without any; empty for a set without classes."""
    counts = dict.fromkeys(images.class_names, 0)
    labels, numbers = np.unique(images.label.numpy(), return_counts=True)
    if not counts and len(labels) == 1:
        return {}
    found = zip(labels.tolist(), numbers.tolist(), strict=True)
    return counts | {class_name(images, label): number for label, number in found}


def class_name(images: Images, label: int) -> str:
    """The name of a label, or its number where it has none."""
    return images.class_names[label] if 0 <= label < len(images.class_names) else str(label)


def _duplicates(mine: Scan, search: NearDuplicates) -> Duplicates:
    groups = same_bytes(mine.digests)
    copies = tuple(Pair(group[0], copy) for group in groups for copy in group[1:])
    pictures, numbers = mine.unlike()
    near = tuple(_numbered(pair, numbers, numbers) for pair in search.within(pictures))
    return Duplicates(copies, near, len(mine.compared))


def _overlap(mine: Scan, theirs: Scan, search: NearDuplicates) -> Overlap:
    if mine.pictures.shape[1:] != theirs.pictures.shape[1:]:
        shapes = [tuple(pictures.shape[1:]) for pictures in (mine.pictures, theirs.pictures)]
        raise ValueError(f"two sets must be of one shape to be compared, got {shapes[0]} and {shapes[1]}.")
    copies = tuple(same_bytes_between(mine.digests, theirs.digests))
    pictures, numbers = mine.unlike()
    others, their_numbers = theirs.unlike(mine.digests)
    near = tuple(_numbered(pair, numbers, their_numbers) for pair in search.between(pictures, others))
    return Overlap(copies, near, len(mine.compared), len(theirs.digests), len(theirs.compared))


def _numbered(pair: Pair, numbers: np.ndarray, others: np.ndarray) -> Pair:
    """A pair of places as a pair of numbers in the sets."""
    first, second = int(numbers[pair.first]), int(others[pair.second])
    if numbers is others and first > second:
        first, second = second, first
    return replace(pair, first=first, second=second)


def _digests(pixels: Tensor) -> np.ndarray:
    """64 bits of each image's bytes: two of a million different images share them with a chance of 3e-8."""
    rows = np.ascontiguousarray(pixels.flatten(1).numpy())
    return np.frombuffer(b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows), dtype=np.uint64)


def _histogram(pixels: Tensor) -> Tensor:
    """How often each channel holds each value: int64 [C, 256]."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in pixels.unbind(1)])


def _values(histogram: Tensor) -> ChannelValues:
    share = histogram.double() / histogram.sum()
    level = torch.arange(256, dtype=torch.float64)
    mean = (share * level).sum()
    there = histogram.nonzero().squeeze(1)
    std = (share * (level - mean).square()).sum().sqrt()
    return ChannelValues(int(there[0]), int(there[-1]), float(mean), float(std), float(share[0]), float(share[-1]))

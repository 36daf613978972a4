"""Duplicates in image sets: images with the same bytes, and nearly identical images."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.randomness import permutation

COMPARED_SIDE = 32
"""Largest side, in pixels, at which images are compared; larger images are downsampled by averaging."""
THUMBNAIL_SIDE = 8
NUM_PARTS = 64
"""Number of parts into which the search for neighbors divides a set; only the nearest image of each part is kept."""
SLACK = 0.15
"""Two images are compared if the ratio of the differences of their thumbnails is at most `max_ratio` + SLACK."""


@dataclass(frozen=True)
class Pair:
    """Two images that are duplicates of each other, in the same set or in two sets.

    first, second: indices of the two images, each in the set that contains the image.
    kind: "same_bytes" for identical images; "near" for nearly identical images; "mirrored" for images that are nearly
        identical after a horizontal flip of one image.
    correlation: correlation between the pixels of the two images, in [-1, 1].
    ratio: difference of the two images relative to the difference of one of them from a neighbor, see
        `NearDuplicates`; 0 for identical images.
    """

    first: int
    second: int
    kind: Literal["same_bytes", "near", "mirrored"] = "same_bytes"
    correlation: float = 1.0
    ratio: float = 0.0


def image_digests(pixels: Tensor) -> np.ndarray:
    """Return a 64-bit digest of each image: uint64 [B].

    The probability that a million different images have two equal digests is 3e-8.
    """
    rows = np.ascontiguousarray(pixels.flatten(1).numpy())
    return np.frombuffer(b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows), dtype=np.uint64)


def same_bytes(digests: np.ndarray) -> list[tuple[int, ...]]:
    """Return the groups of two or more images with equal digests, as tuples of image indices in ascending order.

    digests: digest of each image, [N].  The groups are sorted by their first image index.
    """
    order = np.argsort(digests, kind="stable")
    starts = np.flatnonzero(np.diff(digests[order])) + 1
    groups = (tuple(group.tolist()) for group in np.split(order, starts) if len(group) > 1)
    return sorted(groups)


def same_bytes_between(digests: np.ndarray, others: np.ndarray) -> list[Pair]:
    """Find the images of one set that are exact copies of images in another set.

    digests: digest of each image in the set of the originals, [N].  others: digest of each image in the set that may
        contain copies, [M].
    Returns one pair for each index k for which others[k] is also in `digests`: `second` is k, and `first` is the
    smallest index n for which digests[n] equals others[k].
    """
    unique, first = np.unique(digests, return_index=True)
    position = np.searchsorted(unique, others).clip(max=len(unique) - 1)
    found = np.flatnonzero(unique[position] == others)
    return [Pair(int(first[position[k]]), int(k)) for k in found]


@dataclass(frozen=True)
class NearDuplicates:
    """Search for pairs of images that are much closer to each other than to other images of the set.

    The difference of two images is sqrt(2 - 2 correlation): the Euclidean distance after each is shifted to mean 0 and
    scaled to norm 1, so that brightness and contrast do not matter. One image is also flipped horizontally and the
    smaller of the two differences is used, since training may flip images. A pair is a near duplicate if its difference
    is at most `max_ratio` times the difference between one of the two images and its `neighbor`-th nearest image (its
    farthest image if the set has fewer images). The bound is relative because sets differ: two different handwritten
    digits correlate more than two frames of one scene. (Lowe 2004, section 7.1, also separates correct and false
    matches by a distance ratio.)

    The search does not find copies that are cropped, shifted or rotated, or groups of more than `neighbor` nearly
    identical images. It first compares thumbnails. To save time, the neighbors of an image are only searched among the
    nearest image in each of 64 random parts of the set. Images with similar thumbnails are then compared at up to 32
    pixels per side.

    max_ratio: largest ratio of the two differences for a near duplicate, in (0, 1).
    neighbor: rank of the neighbor by distance, from 1 for the nearest image.
    max_compared: largest number of images of each set to compare; the time grows quadratically with this number. If a
        set has more images, a random subset is compared.
    seed: seed of the random choice of the images to compare.
    """

    max_ratio: float = 0.4
    neighbor: int = 10
    max_compared: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.max_ratio < 1:
            raise ValueError(f"max_ratio must be in (0, 1), got {self.max_ratio}.")
        if not 1 <= self.neighbor <= NUM_PARTS // 2:
            raise ValueError(f"neighbor must be in 1..{NUM_PARTS // 2}, got {self.neighbor}.")
        if self.max_compared < 0:
            raise ValueError(f"max_compared must be at least 0, got {self.max_compared}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in 0..2^63 - 1, got {self.seed}.")

    def choose(self, size: int) -> np.ndarray:
        """Choose the images to compare in a set of `size` images.

        Returns their indices in random order, int64 [min(size, max_compared)].
        """
        # The order is random, so that parts are similar even if the set is sorted by class or by scene.
        return permutation(self.seed, epoch=0, size=size)[: self.max_compared]

    def within(self, images: Tensor) -> list[Pair]:
        """Return the pairs of near duplicates within one set, by ascending ratio.

        images: downsampled images in random order, see `downsample`: uint8 [N, C, h, w].
        `first` and `second` of a pair are indices into `images`, with first < second.
        """
        found: dict[tuple[int, int], Pair] = {}
        for pair in self._pairs(images, images, same=True):
            key = min(pair.first, pair.second), max(pair.first, pair.second)
            if key not in found or pair.ratio < found[key].ratio:
                found[key] = replace(pair, first=key[0], second=key[1])
        return sorted(found.values(), key=lambda pair: pair.ratio)

    def between(self, images: Tensor, others: Tensor) -> list[Pair]:
        """Return the pairs of an image in `images` (first) and its near duplicate in `others` (second).

        images, others: downsampled images in random order, see `downsample`: uint8 [N, C, h, w] and [M, C, h, w].
        The pairs are sorted by ascending ratio. The ratio is relative to a neighbor of the second image in `images`.
        """
        return sorted(self._pairs(others, images, same=False), key=lambda pair: pair.ratio)

    def _pairs(self, rows: Tensor, columns: Tensor, *, same: bool) -> Iterator[Pair]:
        if len(columns) < 2 + same:
            return  # the ratio requires another image
        for row, column in _neighbors(rows, columns, self.neighbor, self.max_ratio + SLACK, same=same):
            correlation, mirrored = _correlations(rows[row], columns[column])  # [R, K]
            difference = _difference(correlation)
            ratio = difference / _kth_smallest(difference, self.neighbor)[:, None]  # 0 / 0 = nan is no duplicate
            for k, m in (ratio <= self.max_ratio).nonzero().tolist():
                kind: Literal["mirrored", "near"] = "mirrored" if mirrored[k, m] else "near"
                yield Pair(int(column[k, m]), int(row[k]), kind, float(correlation[k, m]), float(ratio[k, m]))


def downsample(pixels: Tensor) -> Tensor:
    """Downsample images by averaging for the comparison: uint8 [B, C, H, W] -> uint8 [B, C, h, w], h and w <= 32."""
    height, width = pixels.shape[-2:]
    sides = min(height, COMPARED_SIDE), min(width, COMPARED_SIDE)
    if (height, width) == sides:
        return pixels
    return F.adaptive_avg_pool2d(pixels.float(), sides).round().to(torch.uint8)


def _neighbors(
    rows: Tensor, columns: Tensor, neighbor: int, max_ratio: float, *, same: bool, block: int = 4096
) -> Iterator[tuple[Tensor, Tensor]]:
    """Compare thumbnails to find the images that may have near duplicates, with their nearest neighbors.

    rows: images whose neighbors are searched, uint8 [N, C, h, w].
    columns: images among which the neighbors are searched, uint8 [M, C, h, w].
    neighbor, max_ratio: see `NearDuplicates`; they apply to the differences of thumbnails.
    same: whether `rows` and `columns` are the same images, in which case an image is not its own neighbor.
    block: number of images in `rows` that are compared at a time.
    Yields pairs of index tensors, int64: the indices in `rows` of R <= 64 images whose nearest neighbor satisfies
    max_ratio, [R]; and the indices in `columns` of the K nearest neighbors of each image, nearest first, [R, K].
    """
    parts = torch.chunk(_thumbnails(columns), NUM_PARTS)
    upright, mirrored = _thumbnails(rows), _thumbnails(rows.flip(-1))
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        correlation, index = _nearest_of_parts(upright[part], mirrored[part], parts, own=start if same else None)
        # In a very small set, a part may contain only the image whose neighbors are searched. The correlation with
        # itself was set to -2, so it is the smallest correlation, which topk leaves out.
        correlation, order = correlation.topk(len(parts) - same, dim=1)
        difference = _difference(correlation)
        near = difference[:, 0] <= max_ratio * _kth_smallest(difference, neighbor)
        for row in torch.split(near.nonzero().squeeze(1), 64):
            yield row + start, index[row].gather(1, order[row])


def _nearest_of_parts(
    upright: Tensor, mirrored: Tensor, parts: tuple[Tensor, ...], *, own: int | None
) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbor of each of R images within each of P parts of a set.

    upright, mirrored: thumbnails of the images and of the flipped images, [R, D].
    parts: thumbnails of the images in each part, [size of the part, D].
    own: index of the first of the R images in the set; None if the R images are from another set.
    Returns the correlations with the nearest neighbors, and the indices of these neighbors in the set: [R, P] each.
    """
    best, index, first = [], [], 0
    for part in parts:
        correlation = torch.maximum(upright @ part.T, mirrored @ part.T)
        if own is not None and -len(upright) < own - first < len(part):
            correlation.diagonal(own - first).fill_(-2)  # correlation of an image with itself
        value, column = correlation.max(dim=1)
        best.append(value)
        index.append(column + first)
        first += len(part)
    return torch.stack(best, dim=1), torch.stack(index, dim=1)


def _difference(correlation: Tensor) -> Tensor:
    return (2 - 2 * correlation).clamp_min(0).sqrt()


def _kth_smallest(difference: Tensor, k: int) -> Tensor:
    """Return the k-th smallest of the K differences of each image, or the largest if K < k: [R, K] -> [R]."""
    return difference.kthvalue(min(k, difference.shape[1]), dim=1).values


def _thumbnails(images: Tensor) -> Tensor:
    """Return flattened thumbnails with mean 0 and norm 1: float32 [N, C * 64].  images: uint8 [N, C, h, w]."""
    height, width = images.shape[-2:]
    sides = min(height, THUMBNAIL_SIDE), min(width, THUMBNAIL_SIDE)
    small = [F.adaptive_avg_pool2d(part.float(), sides).flatten(1) for part in torch.split(images, 4096)]
    return _standardize(torch.cat(small))


def _standardize(pixels: Tensor) -> Tensor:
    """Shift each image to mean 0 and scale it to norm 1 over the last dimension; constant images become 0."""
    centered = pixels - pixels.mean(dim=-1, keepdim=True)
    return F.normalize(centered, dim=-1, eps=1e-3)


def _correlations(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Correlate each image with K other images, with and without a horizontal flip of the image.

    images: [R, C, h, w].  others: the K other images of each image, [R, K, C, h, w].
    Returns the larger of the two correlations, [R, K], and whether it is the correlation with the flip, bool [R, K].
    """
    candidates = _standardize(others.float().flatten(2))
    upright, mirrored = (
        (candidates @ _standardize(side.float().flatten(1))[:, :, None]).squeeze(2)
        for side in (images, images.flip(-1))
    )
    return torch.maximum(upright, mirrored), mirrored > upright

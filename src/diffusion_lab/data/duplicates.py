"""Images that a set holds twice: the same bytes, or nearly the same picture."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.randomness import permutation

COMPARED_SIDE = 32
"""Pixels a side at which pictures are compared; larger ones are averaged down to it."""
THUMBNAIL_SIDE = 8
NUM_PARTS = 64
"""Parts into which a set is cut to find neighbours: the nearest of each part is kept, not the nearest of all."""
SLACK = 0.15
"""How far a thumbnails' ratio may lie above the limit before the pictures themselves are not compared any more."""


@dataclass(frozen=True)
class Pair:
    """Two images taken for one.  first, second: their numbers, each in its set.

    kind: the same bytes, nearly the same picture, or nearly its mirror image.  correlation: of all pixels, in [-1, 1].
    ratio: what NearDuplicates bounds; 0 for the same bytes.
    """

    first: int
    second: int
    kind: Literal["same_bytes", "near", "mirrored"] = "same_bytes"
    correlation: float = 1.0
    ratio: float = 0.0


def same_bytes(digests: np.ndarray) -> list[tuple[int, ...]]:
    """Groups of two or more numbers whose digests [N] are equal, each growing, ordered by their first."""
    order = np.argsort(digests, kind="stable")
    starts = np.flatnonzero(np.diff(digests[order])) + 1
    groups = (tuple(group.tolist()) for group in np.split(order, starts) if len(group) > 1)
    return sorted(groups)


def same_bytes_between(digests: np.ndarray, others: np.ndarray) -> list[Pair]:
    """One pair for each of the `others` [M] whose digest is among `digests` [N], with the first that has it."""
    unique, first = np.unique(digests, return_index=True)
    place = np.searchsorted(unique, others).clip(max=len(unique) - 1)
    found = np.flatnonzero(unique[place] == others)
    return [Pair(int(first[place[k]]), int(k)) for k in found]


@dataclass(frozen=True)
class NearDuplicates:
    """Finds pairs of pictures that are nearer to each other than pictures of their kind are.

    The difference of two pictures is sqrt(2 - 2 correlation), the Euclidean distance after their mean is taken out and
    their contrast is set to 1, so that brightness and contrast do not count; the smaller one with and without
    mirroring, since training may mirror. A pair is a near duplicate where its difference is at most `max_ratio` times
    the difference between one of the two and its `neighbour`-th nearest picture (in smaller sets: the farthest). The
    bound is relative because sets differ: two unlike handwritten ones correlate more than two frames of one scene.
    (A ratio of distances tells a match from a look-alike in Lowe 2004, section 7.1, too.)

    Not found: copies that are cropped, shifted or turned, and groups of more than `neighbour` near copies.
    Neighbours are looked for by thumbnails, the nearest in each of 64 random parts of the set; what is near is then
    compared at up to 32 pixels a side.

    max_compared: images of each set that are compared, a random choice that `seed` fixes; the time grows as its square.
    """

    max_ratio: float = 0.4
    neighbour: int = 10
    max_compared: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.max_ratio < 1:
            raise ValueError(f"max_ratio must be in (0, 1), got {self.max_ratio}.")
        if not 1 <= self.neighbour <= NUM_PARTS // 2:
            raise ValueError(f"neighbour must be in 1..{NUM_PARTS // 2}, got {self.neighbour}.")
        if self.max_compared < 0:
            raise ValueError(f"max_compared must be at least 0, got {self.max_compared}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in 0..2^63 - 1, got {self.seed}.")

    def choice(self, size: int) -> np.ndarray:
        """The numbers of the images to compare in a set of `size`, in random order: [at most max_compared], int64."""
        # In random order, so that the parts of a set that is sorted by class or by scene are alike.
        return permutation(self.seed, epoch=0, size=size)[: self.max_compared]

    def within(self, pictures: Tensor) -> list[Pair]:
        """The pairs of one set, first < second, nearest first.  pictures: uint8 [N, C, h, w], from `reduced`."""
        found: dict[tuple[int, int], Pair] = {}
        for pair in self._pairs(pictures, pictures, same=True):
            key = min(pair.first, pair.second), max(pair.first, pair.second)
            if key not in found or pair.ratio < found[key].ratio:
                found[key] = replace(pair, first=key[0], second=key[1])
        return sorted(found.values(), key=lambda pair: pair.ratio)

    def between(self, pictures: Tensor, others: Tensor) -> list[Pair]:
        """Pairs of a picture (first) and another set's (second), nearest first, by the neighbours of the second."""
        return sorted(self._pairs(others, pictures, same=False), key=lambda pair: pair.ratio)

    def _pairs(self, rows: Tensor, columns: Tensor, *, same: bool) -> Iterator[Pair]:
        if len(columns) < 2 + same:
            return  # without a further picture there is nothing to be nearer than
        for row, column in _neighbours(rows, columns, self.neighbour, self.max_ratio + SLACK, same=same):
            correlation, mirrored = _correlations(rows[row], columns[column])  # [R, K]
            difference = _difference(correlation)
            ratio = difference / _usual(difference, self.neighbour)[:, None]  # 0 / 0 = nan is no duplicate
            for k, m in (ratio <= self.max_ratio).nonzero().tolist():
                kind: Literal["mirrored", "near"] = "mirrored" if mirrored[k, m] else "near"
                yield Pair(int(column[k, m]), int(row[k]), kind, float(correlation[k, m]), float(ratio[k, m]))


def reduced(pixels: Tensor) -> Tensor:
    """Pictures as they are compared, at most 32 pixels a side.  pixels: uint8 [B, C, H, W].  Returns uint8."""
    height, width = pixels.shape[-2:]
    sides = min(height, COMPARED_SIDE), min(width, COMPARED_SIDE)
    if (height, width) == sides:
        return pixels
    return F.adaptive_avg_pool2d(pixels.float(), sides).round().to(torch.uint8)


def _neighbours(
    rows: Tensor, columns: Tensor, neighbour: int, max_ratio: float, *, same: bool, block: int = 4096
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows with something near by thumbnails, and each's nearest columns: ([R], [R, K]), int64, few rows at a time.

    same: rows and columns are one set, and no picture is its own neighbour.
    """
    parts = torch.chunk(_thumbnails(columns), NUM_PARTS)
    upright, mirrored = _thumbnails(rows), _thumbnails(rows.flip(-1))
    for start in range(0, len(rows), block):
        mine = slice(start, start + block)
        correlation, index = _nearest_of_parts(upright[mine], mirrored[mine], parts, own=start if same else None)
        # In a set of a few pictures a part may hold nothing but the row itself: its entry, the last, is left out.
        correlation, order = correlation.topk(len(parts) - same, dim=1)
        difference = _difference(correlation)
        near = difference[:, 0] <= max_ratio * _usual(difference, neighbour)
        for row in torch.split(near.nonzero().squeeze(1), 64):
            yield row + start, index[row].gather(1, order[row])


def _nearest_of_parts(
    upright: Tensor, mirrored: Tensor, parts: tuple[Tensor, ...], *, own: int | None
) -> tuple[Tensor, Tensor]:
    """Each row's largest correlation within each part, and its column: [R, P].  own: the column that is row 0."""
    best, index, first = [], [], 0
    for part in parts:
        correlation = torch.maximum(upright @ part.T, mirrored @ part.T)
        if own is not None and -len(upright) < own - first < len(part):
            correlation.diagonal(own - first).fill_(-2)  # a picture beside itself
        value, column = correlation.max(dim=1)
        best.append(value)
        index.append(column + first)
        first += len(part)
    return torch.stack(best, dim=1), torch.stack(index, dim=1)


def _difference(correlation: Tensor) -> Tensor:
    return (2 - 2 * correlation).clamp_min(0).sqrt()


def _usual(difference: Tensor, neighbour: int) -> Tensor:
    """The neighbour-th smallest of each row, or the largest where there are fewer: [R].  difference: [R, K]."""
    return difference.kthvalue(min(neighbour, difference.shape[1]), dim=1).values


def _thumbnails(pictures: Tensor) -> Tensor:
    """Small pictures with mean 0 and length 1: float32 [N, C * 64].  pictures: uint8 [N, C, h, w]."""
    height, width = pictures.shape[-2:]
    sides = min(height, THUMBNAIL_SIDE), min(width, THUMBNAIL_SIDE)
    small = [F.adaptive_avg_pool2d(part.float(), sides).flatten(1) for part in torch.split(pictures, 4096)]
    return _standardised(torch.cat(small))


def _standardised(pixels: Tensor) -> Tensor:
    """Mean 0 and length 1 over the last dimension; a constant stays 0."""
    centred = pixels - pixels.mean(dim=-1, keepdim=True)
    return F.normalize(centred, dim=-1, eps=1e-3)


def _correlations(pictures: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Of each picture [R, C, h, w] and its others [R, K, C, h, w]: the larger with and without mirroring, and which."""
    candidates = _standardised(others.float().flatten(2))
    upright, mirrored = (
        (candidates @ _standardised(side.float().flatten(1))[:, :, None]).squeeze(2)
        for side in (pictures, pictures.flip(-1))
    )
    return torch.maximum(upright, mirrored), mirrored > upright

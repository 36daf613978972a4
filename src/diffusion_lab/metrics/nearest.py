"""Nearest neighbors between two sets of feature vectors, with exact distances."""

from collections.abc import Iterator

import torch
from torch import Tensor

NUM_CANDIDATES = 8
"""Number of neighbors whose distances are computed exactly. More are needed only for images with almost equal ones."""

BLOCK_NUMBERS = 2**25
"""Largest number of distances in memory at a time."""


def nearest(rows: Tensor, others: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the nearest of the vectors `others` [M, D] for each vector in `rows` [N, D], by the Euclidean distance.

    own: index of each row in `others`, int64 [N], if the rows are some of the others: a row is not its own neighbor.
    Returns the distances, float64 [N], and the indices in `others`, int64 [N], on the CPU. The distances are computed
    from differences in float64, so that the distance between equal vectors is 0.
    """
    # |a - b|^2 = |a|^2 + |b|^2 - 2ab loses the digits of small distances. It therefore only selects candidates, with
    # |a|^2 and |b|^2 reduced by the largest relative error, so that no nearest neighbor can be missed. The expansion is
    # in float32 on a CPU; on a GPU, where float32 may be rounded to TF32, it is in float64.
    dtype = torch.float32 if rows.device.type == "cpu" else torch.float64
    slack = 2 * (rows.shape[1] + 16) * torch.finfo(dtype).eps
    center = others.double().mean(0)
    columns = torch.cat([(part - center).to(dtype) for part in torch.split(others, 4096)])
    norms = (1 - slack) * columns.square().sum(1)
    found = []
    for part in _blocks(len(rows), len(others)):
        block, excluded = rows[part], None if own is None else own[part].to(rows.device)
        centered = (block - center).to(dtype)
        with torch.autocast(rows.device.type, enabled=False):
            bounds = (norms[None] - 2 * centered @ columns.T) + (1 - slack) * centered.square().sum(1)[:, None]
        if excluded is not None:
            bounds.scatter_(1, excluded[:, None], torch.inf)
        found.append(_exact(block, others, bounds, excluded))
    distances, index = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return distances, index


def _blocks(num_rows: int, num_others: int) -> Iterator[slice]:
    size = max(1, BLOCK_NUMBERS // num_others)
    return (slice(start, start + size) for start in range(0, num_rows, size))


def _exact(block: Tensor, others: Tensor, bounds: Tensor, excluded: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return distance and index of the nearest neighbor of each of the rows in `block` [B, D].

    bounds: lower bounds of the squared distances, [B, M].  excluded: index of an excluded neighbor, int64 [B].
    """
    smallest, candidates = bounds.topk(min(NUM_CANDIDATES, len(others)), dim=1, largest=False)  # [B, K]
    candidates = candidates.sort(dim=1).values  # of equal distances, argmin takes the first
    squared = _squared(block[:, None], others[candidates])
    if excluded is not None:
        squared.masked_fill_(candidates == excluded[:, None], torch.inf)
    best, position = squared.min(dim=1)
    index = candidates.gather(1, position[:, None]).squeeze(1)
    is_uncertain = (smallest[:, -1] <= best) & (best > 0)
    if len(others) <= NUM_CANDIDATES:
        return best.sqrt(), index
    for k in is_uncertain.nonzero().squeeze(1).tolist():
        every = torch.cat([_squared(block[k], part) for part in torch.split(others, 4096)])
        if excluded is not None:
            every[excluded[k]] = torch.inf
        best[k], index[k] = every.min(dim=0)
    return best.sqrt(), index


def _squared(one: Tensor, other: Tensor) -> Tensor:
    return (one.double() - other.double()).square().sum(dim=-1)

"""Division of the feature space into cells: k-means clusters of the training images."""

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.randomness import Purpose, stream

MAX_ITERATIONS = 25
"""Largest number of iterations of k-means. The time grows with images times cells."""

BATCH_SIZE = 4096
"""Number of images whose distances to all centers are in memory at a time."""


def cell_centers(rows: Tensor, num_cells: int) -> Tensor:
    """Return the centers of the k-means clusters of `rows` [N, D], float64 [num_cells, D].

    The first centers are chosen by k-means++ (Arthur & Vassilvitskii 2007) with a fixed seed. Lloyd's algorithm
    follows.
    """
    centers, cells = _first_centers(rows, num_cells), torch.empty(0)
    for _ in range(MAX_ITERATIONS):
        earlier, cells = cells, assign_cells(rows, centers)
        if torch.equal(earlier, cells):
            break
        sums, counts = torch.zeros_like(centers), torch.bincount(cells, minlength=num_cells)
        for part, in_part in zip(torch.split(rows, BATCH_SIZE), torch.split(cells, BATCH_SIZE), strict=True):
            sums.index_add_(0, in_part, part.double())
        filled = counts > 0
        centers[filled] = sums[filled] / counts[filled, None]
    return centers


def assign_cells(rows: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest center of each row [N, D], int64 [N].  centers: float64 [K, D]."""
    # float64: an assignment that depends on the rounding would change with the number of threads.
    return torch.cat([torch.cdist(part.double(), centers).argmin(dim=1) for part in torch.split(rows, BATCH_SIZE)])


def _first_centers(rows: Tensor, num_cells: int) -> Tensor:
    """Choose rows far from each other: each with a probability proportional to its squared distance to the others."""
    draws = stream(0, Purpose.ORDER, step=4).random(num_cells)
    centers = [rows[int(draws[0] * len(rows))].double()]
    squared = np.full(len(rows), np.inf)
    for draw in draws[1:]:
        latest = [(part.double() - centers[-1]).square().sum(1) for part in torch.split(rows, BATCH_SIZE)]
        squared = np.minimum(squared, torch.cat(latest).cpu().numpy())
        total = squared.cumsum()
        chosen = np.searchsorted(total, draw * total[-1], side="right").clip(max=len(rows) - 1)
        centers.append(rows[int(chosen)].double())
    return torch.stack(centers)

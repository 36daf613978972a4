"""Mean and covariance of the features of a set whose images several ranks read."""

import torch
from torch import Tensor

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.metrics.feature_set import FeatureSet


class Moments:
    """Features of the part of a set that this rank reads: individual features, and sums for mean and covariance."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._sums: tuple[Tensor, Tensor] | None = None
        self._count = 0

    def add(self, features: Tensor, stored: Tensor, needs_sums: bool) -> None:
        """Add a batch.

        features: features of images, float32 [B, D].  stored: whether to store the features of each image, bool [B].
        needs_sums: whether sums are needed, because the features of some images are not stored.
        """
        self._rows.append(features[stored])
        self._count += len(features)
        if needs_sums:
            exact = features.double()
            sums = exact.sum(0), exact.T @ exact
            self._sums = sums if self._sums is None else (self._sums[0] + sums[0], self._sums[1] + sums[1])

    def feature_set(self, ranks: Ranks) -> FeatureSet:
        """Return the feature set of all ranks' images. Collective: call on all ranks."""
        widths = [part.shape[1] for part in self._rows]
        dimensions = max(ranks.all_gather_object(max(widths, default=0)))
        rows = ranks.all_gather(torch.cat([*self._rows, torch.zeros(0, dimensions)]))
        if max(ranks.all_gather_object(self._sums is not None)) is False:
            return FeatureSet.of(rows)
        total, product = self._sums or (
            torch.zeros(dimensions, dtype=torch.float64),
            torch.zeros(dimensions, dimensions, dtype=torch.float64),
        )
        count = sum(ranks.all_gather_object(self._count))
        total, product = ranks.all_reduce_sum(total), ranks.all_reduce_sum(product)
        mean = total / count
        return FeatureSet(count, mean, (product - count * torch.outer(mean, mean)) / (count - 1), rows)

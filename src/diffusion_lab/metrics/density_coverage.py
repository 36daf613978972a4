"""Density and coverage: alternatives to precision and recall that are robust to outliers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric, caution_for_neighbors, caution_for_unequal_sizes

BATCH_SIZE = 1000
"""Number of images whose distances to the complete other set are in memory at a time."""


@dataclass(frozen=True)
class DensityCoverage(Metric):
    """Density and coverage of samples in balls around the features of real images (Naeem et al. 2020, eq. 3 and 4).

    Density: mean number of balls that contain a sample, divided by num_neighbors.
    Coverage: fraction of the balls that contain at least one sample.
    num_neighbors: number k; the radius of a ball is the distance from its center to the k-th nearest reference image.
    Raises ValueError unless num_neighbors is at least 1; `measure` raises it for a reference of at most num_neighbors
    images.

    >>> from diffusion_lab import DensityCoverage, FashionCNN, FeatureSet
    >>> features = FeatureSet.of(torch.arange(20.0).view(10, 2))  # of 10 images
    >>> DensityCoverage(FashionCNN()).measure(features, features)
    {'density': 1.0, 'coverage': 1.0}
    """

    choice: ClassVar[str] = "density_coverage"
    meanings: ClassVar[Mapping[str, str]] = {
        "density": "mean number of reference images around a sample, divided by num_neighbors",
        "coverage": "fraction of the reference images with a sample nearby",
    }
    higher_is_better: ClassVar[bool] = True

    num_neighbors: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_neighbors < 1:
            raise ValueError(f"num_neighbors must be at least 1, got {self.num_neighbors}.")

    @property
    def min_images(self) -> int:
        return self.num_neighbors + 1

    def caution(self, num_images: int) -> str | None:
        return caution_for_neighbors(num_images, self.num_neighbors)

    def caution_for_sizes(self, num_samples: int, num_reference: int) -> str | None:
        few = super().caution_for_sizes(num_samples, num_reference)
        return few or caution_for_unequal_sizes(num_samples, num_reference)

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        self.check_sets(samples, reference)
        generated, real = samples.require_rows().double(), reference.require_rows().double()
        if len(real) <= self.num_neighbors:
            raise ValueError(
                f"the reference must contain more than num_neighbors={self.num_neighbors} images, got {len(real)}."
            )
        num_inside, covered = 0, 0
        for batch in torch.split(real, BATCH_SIZE):
            # The smallest distance of an image is its distance to itself, which does not count as a neighbor.
            radius = _distances(batch, real).kthvalue(self.num_neighbors + 1).values
            # Open balls, as in the authors' code: the density of a set compared with itself is 1.
            inside = _distances(batch, generated) < radius[:, None]  # [b, N]
            num_inside += int(inside.sum())
            covered += int(inside.any(dim=1).sum())
        density = num_inside / (self.num_neighbors * len(generated))
        return {"density": density, "coverage": covered / len(real)}


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Return the Euclidean distance between each feature vector in `one` [n, D] and in `other` [m, D]: [n, m].

    The features must be float64, because torch.cdist subtracts large sums, which is too inexact in float32.
    """
    return torch.cdist(one, other)

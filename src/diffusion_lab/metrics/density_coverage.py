"""As precision and recall, but not misled by single images far from all others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric

BATCH_SIZE = 1000
"""Images whose distances to all of the other set are in memory at once."""


@dataclass(frozen=True)
class DensityCoverage(Metric):
    """How many balls around real features hold a sample, on average, over num_neighbours; and what share of the balls
    holds any (Naeem et al. 2020, eq. 3 and 4).

    num_neighbours: a ball reaches to this neighbour within the reference.
    """

    num_neighbours: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_neighbours < 1:
            raise ValueError(f"num_neighbours must be at least 1, got {self.num_neighbours}.")

    @property
    def min_images(self) -> int:
        return self.num_neighbours + 1

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        generated, real = samples.require_rows().double(), reference.require_rows().double()
        if len(real) <= self.num_neighbours:
            raise ValueError(
                f"reference must hold more than num_neighbours={self.num_neighbours} images, got {len(real)}."
            )
        num_inside, covered = 0, 0
        for batch in torch.split(real, BATCH_SIZE):
            # The smallest distance of an image is to itself.
            radius = _distances(batch, real).kthvalue(self.num_neighbours + 1).values
            # Without their borders, as in the authors' code: a set with itself has density 1.
            inside = _distances(batch, generated) < radius[:, None]  # [b, N]
            num_inside += int(inside.sum())
            covered += int(inside.any(dim=1).sum())
        density = num_inside / (self.num_neighbours * len(generated))
        return {"density": density, "coverage": covered / len(real)}


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Between all rows, [n, m]; float64, in which differences of large sums are exact enough to tell neighbours."""
    return torch.cdist(one, other)

"""CLIP maximum mean discrepancy: a distance that makes no assumption about the distribution of the embeddings."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric

SIGMA, SCALE = 10.0, 1000.0
"""Bandwidth of the kernel and factor by which the result is multiplied, from the paper's code."""

BATCH_SIZE = 1000


@dataclass(frozen=True)
class CMMD(Metric):
    """Squared MMD of CLIP embeddings under a Gaussian kernel, times 1000 (Jayasumana et al. 2024, eq. 5).

    The kernel matrices include their diagonals, as in the paper's code, so that the distance of a set to itself is 0.
    Raises ValueError unless the features are CLIP features.
    """

    choice: ClassVar[str] = "cmmd"
    meaning: ClassVar[str] = "maximum mean discrepancy of CLIP features"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features.name != "clip":
            raise ValueError(f"`features` must be clip for cmmd, got {self.features.name}.")

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        self.check_sets(samples, reference)
        # float64: all kernel values of unit vectors are in 0.98..1, so that they differ in the last digits only.
        one, other = samples.require_rows().double(), reference.require_rows().double()
        squared = _mean_kernel(one, one) + _mean_kernel(other, other) - 2 * _mean_kernel(one, other)
        return {"cmmd": SCALE * squared}


def _mean_kernel(one: Tensor, other: Tensor) -> float:
    """Return the mean of exp(-|x - y|^2 / (2 sigma^2)) over all rows x of `one` [n, D] and y of `other` [m, D]."""
    total = 0.0
    for batch in torch.split(one, BATCH_SIZE):
        squared = batch.square().sum(1)[:, None] + other.square().sum(1)[None] - 2 * batch @ other.T
        total += float(torch.exp(-squared / (2 * SIGMA**2)).sum())
    return total / (len(one) * len(other))

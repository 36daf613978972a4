"""Distance of CLIP embeddings that assumes no shape of their distribution."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric

SIGMA, SCALE = 10.0, 1000.0
"""Of the kernel, and of the number, as in the paper's code."""

BATCH_SIZE = 1000


@dataclass(frozen=True)
class CMMD(Metric):
    """Squared MMD of CLIP embeddings under a Gaussian kernel, times 1000 (Jayasumana et al. 2024, eq. 5).

    With the diagonals, as in the paper's code: a set with itself has distance 0.
    Raises ValueError for features other than CLIP's.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features.name != "clip":
            raise ValueError(f"features must be clip for cmmd, got {self.features.name}.")

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        # float64: kernels of vectors of length 1 all lie in 0.98..1, and the distance is in their last digits.
        one, other = samples.require_rows().double(), reference.require_rows().double()
        squared = _mean_kernel(one, one) + _mean_kernel(other, other) - 2 * _mean_kernel(one, other)
        return {"cmmd": SCALE * squared}


def _mean_kernel(one: Tensor, other: Tensor) -> float:
    """exp(-|x - y|^2 / (2 sigma^2)), averaged over all pairs of rows."""
    total = 0.0
    for batch in torch.split(one, BATCH_SIZE):
        squared = batch.square().sum(1)[:, None] + other.square().sum(1)[None] - 2 * batch @ other.T
        total += float(torch.exp(-squared / (2 * SIGMA**2)).sum())
    return total / (len(one) * len(other))

"""Fréchet distance between two sets of images, over the features that it is given."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric


def frechet_distance(one: FeatureSet, other: FeatureSet) -> Tensor:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, eq. 6): [], float64.

    Raises ValueError for sets of unlike dimensions.
    """
    if one.dimensions != other.dimensions:
        raise ValueError(f"features must be alike in both sets, got {one.dimensions} and {other.dimensions}.")
    # tr (C1 C2)^(1/2) is the sum of the singular values of F1' F2, where C = F F': no root is taken of what should be 0
    # but is not for rounding, so that fewer images than features are exact too.
    overlap = torch.linalg.svdvals(one.factor.T @ other.factor).sum()
    spread = one.covariance.trace() + other.covariance.trace() - 2 * overlap
    distance: Tensor = (one.mean - other.mean).square().sum() + spread
    return distance.clamp(min=0)


@dataclass(frozen=True)
class FrechetDistance(Metric):
    """Distance of the features' means and covariances; over Inception's it is the FID (Heusel et al. 2017)."""

    needs_rows: ClassVar[bool] = False

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        return {"fd": float(frechet_distance(samples, reference))}


@dataclass(frozen=True)
class SpatialFrechetDistance(FrechetDistance):
    """Distance over features that keep where things are (Nash et al. 2021); over Inception's it is the sFID."""

    output: ClassVar[str] = "spatial"

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        return {"sfd": float(frechet_distance(samples, reference))}

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
    spread = one.covariance.trace() + other.covariance.trace() - 2 * _overlap(one, other)
    distance: Tensor = (one.mean - other.mean).square().sum() + spread
    return distance.clamp(min=0)


def _overlap(one: FeatureSet, other: FeatureSet) -> Tensor:
    """Tr (C1 C2)^(1/2), float64 []."""
    if min(one.count, other.count) > one.dimensions:
        # The roots of the eigenvalues of F1' C2 F1, where C = F F': a symmetric problem, three times as fast as all
        # others. Rounding moved values by up to 5 eps of the largest in trials, by `rounding` at most as it is taken
        # here, and moves a root the more the smaller it is.
        values = torch.linalg.eigvalsh(one.factor.T @ other.covariance @ one.factor).clamp(min=0)
        rounding = 10 * torch.finfo(values.dtype).eps * values.max()
        error = torch.minimum(rounding / (2 * values.sqrt()), rounding.sqrt()).sum()
        if 2 * error < 1e-8 * (one.covariance.trace() + other.covariance.trace()):
            by_eigenvalues: Tensor = values.sqrt().sum()
            return by_eigenvalues
    # The sum of the singular values of F1' F2: no root is taken of what should be 0 but is not for rounding, so that
    # fewer images than features are exact too.
    by_singular_values: Tensor = torch.linalg.svdvals(one.factor.T @ other.factor).sum()
    return by_singular_values


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

"""Fréchet distance between two sets of images, over the features that it is given."""

import torch
from torch import Tensor
from torchmetrics import Metric

from diffusion_lab.metrics.features import Features


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> Tensor:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).

    means: [D], covariances: [D, D], float64; covariances may be singular.  Returns a scalar, at least 0.
    """
    # tr (C1 C2)^(1/2) = sum of the roots of the eigenvalues of L' C1 L, where C2 = L L': a symmetric problem, twice as
    # fast as the eigenvalues of the plain product, and exact also for fewer images than features.
    factor = _factor(covariance_2)
    roots = torch.linalg.eigvalsh(factor.T @ covariance_1 @ factor).clamp(min=0).sqrt()
    spread = covariance_1.trace() + covariance_2.trace() - 2 * roots.sum()
    distance: Tensor = (mean_1 - mean_2).square().sum() + spread
    return distance.clamp(min=0)


def _factor(covariance: Tensor) -> Tensor:
    """L with L L' = covariance: Cholesky's where that is well defined, else by eigenvalues; both [D, D]."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    if not failed and pivots.min() > 1e-10 * pivots.max():
        return factor  # type: ignore[no-any-return]
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()  # type: ignore[no-any-return]


def in_short(number: int) -> str:
    """A number of images as names have it: 50000 -> 50k, 1234 -> 1234."""
    thousands, rest = divmod(number, 1000)
    return str(number) if rest or not thousands else f"{thousands}k"


class FrechetDistance(Metric):
    """Distance between generated images and a reference; `name` says over which features and how many images.

    Sums are float64 and added over processes, so that the number does not depend on how the images were shared out.
    Only over Inception's features is the distance called FID.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    reference_sum: Tensor
    reference_product: Tensor
    reference_count: Tensor
    sample_sum: Tensor
    sample_product: Tensor
    sample_count: Tensor

    def __init__(self, features: Features, num_samples: int) -> None:
        """features: the network that sees the images.  num_samples: how many images to generate for one number."""
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {num_samples}.")
        self.features, self.num_samples = features, num_samples
        size = features.num_features
        for kind in ("reference", "sample"):
            self.add_state(f"{kind}_sum", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{kind}_product", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{kind}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def name(self) -> str:
        """Such as fid_inception_50k or fd_fashion_cnn_2k."""
        kind = "fid" if self.features.name == "inception" else "fd"
        return f"{kind}_{self.features.name}_{in_short(self.num_samples)}"

    def update(self, pixels: Tensor, *, reference: bool) -> None:
        """Adds images.  pixels: uint8 [B, C, H, W].  reference: whether they are of the set to compare with."""
        features = self.features(pixels).double()  # [B, D]
        kind = "reference" if reference else "sample"
        setattr(self, f"{kind}_sum", getattr(self, f"{kind}_sum") + features.sum(0))
        setattr(self, f"{kind}_product", getattr(self, f"{kind}_product") + features.T @ features)
        setattr(self, f"{kind}_count", getattr(self, f"{kind}_count") + len(features))

    def compute(self) -> Tensor:
        """The distance, float64.  Raises ValueError unless both sets hold at least 2 images."""
        return frechet_distance(*self._moments("sample"), *self._moments("reference"))

    def reset_samples(self) -> None:
        """Forgets the generated images and keeps the reference."""
        kept = self.reference_sum, self.reference_product, self.reference_count
        self.reset()
        self.reference_sum, self.reference_product, self.reference_count = kept

    def _moments(self, kind: str) -> tuple[Tensor, Tensor]:
        count = int(getattr(self, f"{kind}_count"))
        if count < 2:
            raise ValueError(f"{self.name} needs at least 2 {kind} images, got {count}.")
        mean = getattr(self, f"{kind}_sum") / count
        product = getattr(self, f"{kind}_product") - count * torch.outer(mean, mean)
        return mean, product / (count - 1)

"""Input of metrics: the features of a set of images, or their mean and covariance."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.contracts import described


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images.

    count: number of images.  mean: mean of the features, float64 [D].
    covariance: unbiased covariance of the features, float64 [D, D].
    rows: features of single images, float32 [M, D], in the order of the images. They are the features of all images or,
        if the set is too large to store them all, of a random subset; None if only mean and covariance are known.
    held_out: features of images of the same distribution that are not in the set, float32 [H, D]; None if unknown.
    label: classes on which the generation of the images was conditioned, int64 [M]; None without classes.

    >>> from diffusion_lab import FeatureSet
    >>> FeatureSet.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).covariance  # of two images with two features
    tensor([[2., 0.],
            [0., 0.]], dtype=torch.float64)
    """

    count: int
    mean: Tensor
    covariance: Tensor
    rows: Tensor | None = None
    label: Tensor | None = None
    held_out: Tensor | None = None

    @classmethod
    def of(cls, rows: Tensor) -> "FeatureSet":
        """Build the set from the features of all images [N, D].

        Raises ValueError unless `rows` has two dimensions and at least 2 images.
        """
        if rows.ndim != 2:
            raise ValueError(
                f"`rows` must be the features of images, [N, D], such as FashionCNN()(pixels)['pooled'], got a tensor "
                f"of the shape {list(rows.shape)}."
            )
        if len(rows) < 2:
            raise ValueError(f"a set must contain at least 2 images to have a covariance, got {len(rows)}.")
        return cls(len(rows), rows.double().mean(0), rows.double().T.cov(), rows)

    def require_rows(self) -> Tensor:
        """Return the features of single images: [M, D].  Raises ValueError if only mean and covariance are known."""
        if self.rows is None:
            raise ValueError("the features of single images are required, got only their mean and covariance.")
        return self.rows

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @cached_property
    def factor(self) -> Tensor:
        """Matrix F with F F^T = covariance: float64 [D, D], or [D, N] if all N <= D rows are known."""
        if self.rows is not None and len(self.rows) == self.count <= self.dimensions:
            # This factor is exact. The factor of a singular covariance matrix contains the roots of rounding errors,
            # which act as additional variance.
            centered: Tensor = (self.rows.double() - self.mean).T / (self.count - 1) ** 0.5
            return centered
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        pivots = factor.diagonal().square()
        if not failed and pivots.min() > 1e-10 * pivots.max():
            return factor  # type: ignore[no-any-return]
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt()  # type: ignore[no-any-return]


def require_feature_sets(*sets: FeatureSet) -> None:
    """Raise ValueError unless all arguments of a metric are sets of features."""
    for given in sets:
        if not isinstance(given, FeatureSet):
            raise ValueError(
                f"a metric must be measured on two diffusion_lab.FeatureSet, got {described(given)}; build a set with "
                "FeatureSet.of(features(pixels)['pooled'])."
            )

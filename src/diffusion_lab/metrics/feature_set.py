"""What metrics see of a set of images: its features, or their mean and covariance."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images.

    count: of images.  mean: [D], covariance: [D, D], unbiased, float64.
    rows: the features themselves, float32 [M, D], in the order of the images: of all, or of a random part of a large
    set; None where only the moments are known.  label: int64 [M], the classes that the images were drawn for, if any.
    """

    count: int
    mean: Tensor
    covariance: Tensor
    rows: Tensor | None = None
    label: Tensor | None = None

    @classmethod
    def of(cls, rows: Tensor) -> "FeatureSet":
        """The set of images with these features [N, D].  Raises ValueError for fewer than 2 images."""
        if len(rows) < 2:
            raise ValueError(f"a set must hold at least 2 images to have a covariance, got {len(rows)}.")
        return cls(len(rows), rows.double().mean(0), rows.double().T.cov(), rows)

    def require_rows(self) -> Tensor:
        """The features of single images, [M, D].  Raises ValueError where only the moments are known."""
        if self.rows is None:
            raise ValueError("the features of single images must be known, got their mean and covariance alone.")
        return self.rows

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    @cached_property
    def factor(self) -> Tensor:
        """F with F F' = covariance: [D, D], or [D, N] of fewer images than dimensions; float64."""
        if self.rows is not None and len(self.rows) == self.count <= self.dimensions:
            # Exact: in a singular covariance the rounding of sums would count as spread, with its root.
            centred: Tensor = (self.rows.double() - self.mean).T / (self.count - 1) ** 0.5
            return centred
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        pivots = factor.diagonal().square()
        if not failed and pivots.min() > 1e-10 * pivots.max():
            return factor  # type: ignore[no-any-return]
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt()  # type: ignore[no-any-return]

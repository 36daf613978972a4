"""Means of quantities that are defined for single images, such as bits per dimension or a reconstruction error."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from diffusion_lab.contracts import require_dataclass
from diffusion_lab.metrics.metric import abbreviate_count


class Quantity(Protocol):
    """Interface of a quantity that is computed for each image as a sum of terms."""

    @property
    def name(self) -> str:
        """First part of the metric name."""

    @property
    def num_terms(self) -> int:
        """Number of terms. A quantity with several terms may also have an attribute `steps`, the times of the terms.

        A quantity that evaluates the denoiser may have an attribute `num_evaluations`, the number of evaluations for
        one image, with which the progress and the duration are estimated.
        """

    def __call__(self, denoiser: Any, x_0: Tensor, condition: Any, noise: Any) -> Tensor:
        """Return the terms of each image in x_0 [B, C, H, W]: [B, num_terms].

        denoiser, condition: evaluated denoiser and its conditions.  noise: source of the noise tensors.
        """


class MeanOverImages(Metric):
    """Mean of a quantity over images from a split of a data set.

    Sums are float64 and reduced over all ranks, so that the mean does not depend on how the images are distributed.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    sums: Tensor
    count: Tensor

    def __init__(self, quantity: Quantity, split: str | None = None, num_images: int | None = None) -> None:
        """Raise ValueError if num_images is below 1.

        quantity: quantity to average, a dataclass such as `VariationalBound`.
        split: name of the split of the images; None if it is set later, before the first update.
        num_images: number of images from the beginning of the split; None selects all images.
        """
        super().__init__()
        require_dataclass(type(quantity))
        if num_images is not None and num_images < 1:
            raise ValueError(f"num_images must be at least 1 (null for all images), got {num_images}.")
        self.quantity, self.split, self.num_images = quantity, split, num_images
        self.choice = str(getattr(quantity, "choice", quantity.name))
        """Name of the metric in the setting `metrics`, such as flow, for messages."""
        self.total, self.terms = 0, torch.zeros(quantity.num_terms, dtype=torch.float64)
        """Number of images on all ranks, and mean of each term [num_terms]; set by `compute`."""
        self.add_state("sums", torch.zeros(quantity.num_terms, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def name(self) -> str:
        """Name of the metric, for example bits_bound_test_10k; valid after `compute`."""
        return f"{self.quantity.name}_{self.split}_{abbreviate_count(self.total)}"

    def update(self, terms: Tensor) -> None:
        """Add images.  terms: terms of each image, [B, num_terms], which add up to the quantity of the image."""
        self.sums = self.sums + terms.double().sum(0)
        self.count = self.count + len(terms)

    def compute(self) -> Tensor:
        """Return the mean, float64.  Raises ValueError if there are no images."""
        if not int(self.count):
            raise ValueError(f"{self.choice} needs at least 1 image, got 0.")
        # Stored here, because the sums are reduced over all ranks only within this method.
        self.total, self.terms = int(self.count), self.sums / self.count
        return self.terms.sum()

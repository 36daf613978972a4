"""The mean over a set of images of what can be said of each: bits per dimension, an error of reconstruction."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from diffusion_lab.metrics.metric import in_short


class Quantity(Protocol):
    """What is measured of each image."""

    @property
    def name(self) -> str:
        """The beginning of the number's name."""

    @property
    def num_terms(self) -> int:
        """Terms that add up to the quantity; one that has several may also have `steps`, their times."""

    def __call__(self, denoiser: Any, x_0: Tensor, condition: Any, noise: Any) -> Tensor:
        """The terms of images x_0 [B, C, H, W] under a denoiser: [B, num_terms].  noise: a source for each."""


class MeanOverImages(Metric):
    """Mean of a quantity; `name` says of which, of which split and of how many images.

    Sums are float64 and added over processes: the number does not depend on how the images were shared out.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    sums: Tensor
    count: Tensor

    def __init__(self, quantity: Quantity, split: str | None = None, num_images: int | None = None) -> None:
        """quantity: such as a `VariationalBound`.  split: None leaves it open, to be set before the first image.

        num_images: the split's first ones; None is all.
        """
        super().__init__()
        if num_images is not None and num_images < 1:
            raise ValueError(f"num_images must be at least 1, or null for all, got {num_images}.")
        self.quantity, self.split, self.num_images = quantity, split, num_images
        self.total, self.terms = 0, torch.zeros(quantity.num_terms, dtype=torch.float64)
        """Of all processes, once computed: the number of images, and the mean of each term [num_terms]."""
        self.add_state("sums", torch.zeros(quantity.num_terms, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def name(self) -> str:
        """Such as bits_bound_test_10k, once computed."""
        return f"{self.quantity.name}_{self.split}_{in_short(self.total)}"

    def update(self, terms: Tensor) -> None:
        """Adds images.  terms: [B, num_terms], which add up to the quantity of an image."""
        self.sums = self.sums + terms.double().sum(0)
        self.count = self.count + len(terms)

    def compute(self) -> Tensor:
        """The mean, float64.  Raises ValueError where no image was seen."""
        if not int(self.count):
            raise ValueError(f"{self.quantity.name} needs at least 1 image, got 0.")
        # Kept, since only in here the sums are those of all processes.
        self.total, self.terms = int(self.count), self.sums / self.count
        return self.terms.sum()

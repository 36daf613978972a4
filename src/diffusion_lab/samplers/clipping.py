"""Clipping of estimates of x_0 that are outside the range of images."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from diffusion_lab.contracts import DataclassInterface, added


class Clipping(DataclassInterface):
    """A rule for estimates of x_0 outside [-1, 1].

    Estimates are clipped before the gradient of a classifier shifts them (Dhariwal & Nichol 2021, code).
    after_guidance: whether the shifted estimates are clipped again.
    """

    after_guidance: bool = True

    @abstractmethod
    def __call__(self, x_0: Tensor) -> Tensor:
        """Return the clipped estimates.  x_0: [B, C, H, W]."""


@dataclass(frozen=True)
class NoClipping(Clipping):
    """No clipping: estimates are returned unchanged (Song et al. 2021, code).

    >>> from diffusion_lab import NoClipping
    >>> NoClipping()(torch.tensor([[[[-0.5, 2.0]]]]))
    tensor([[[[-0.5000,  2.0000]]]])
    """

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0


@dataclass(frozen=True)
class StaticClipping(Clipping):
    """Clipping of every pixel to [-1, 1] (Ho et al. 2020, code).

    after_guidance: see `Clipping`.

    >>> from diffusion_lab import StaticClipping
    >>> StaticClipping()(torch.tensor([[[[-0.5, 2.0]]]]))
    tensor([[[[-0.5000,  1.0000]]]])
    """

    after_guidance: bool = added(default=True)

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0.clamp(-1, 1)


@dataclass(frozen=True)
class DynamicClipping(Clipping):
    """Clipping of each image to [-a, a] and division by a (Saharia et al. 2022, section 2.3, "dynamic thresholding").

    percentile: fraction of the values of an image that are in [-a, a], in (0, 1]. Images in [-1, 1] are unchanged.
    after_guidance: see `Clipping`.
    Raises ValueError unless percentile is in (0, 1].

    >>> from diffusion_lab import DynamicClipping
    >>> DynamicClipping(1.0)(torch.tensor([[[[-0.5, 2.0]]]]))
    tensor([[[[-0.2500,  1.0000]]]])
    """

    percentile: float = 0.995
    after_guidance: bool = added(default=True)

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must be in (0, 1], got {self.percentile}.")

    def __call__(self, x_0: Tensor) -> Tensor:
        # sort instead of torch.quantile, which is limited to 16 million elements.
        magnitudes = x_0.flatten(1).abs().sort(dim=1).values  # [B, C * H * W]
        last = magnitudes.shape[1] - 1
        position = self.percentile * last
        below = int(position)
        limit = magnitudes[:, below].lerp(magnitudes[:, min(below + 1, last)], position - below).clamp(min=1)
        limit = limit.view(-1, *[1] * (x_0.ndim - 1))
        return x_0.clamp(-limit, limit) / limit

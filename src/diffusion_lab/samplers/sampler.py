"""What all samplers share: their arguments, not their loops."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition


class Noise(Protocol):
    """A source of standard normal noise for a fixed set of images."""

    def draw(self) -> Tensor:
        """The next noise of every image: [B, C, H, W], float32."""


OnStep = Callable[[int, Tensor, Tensor], None]
"""Told (number of steps done, x_t after the step, estimate of x_0 in it) once for each step."""


class Sampler(ABC):
    """An algorithm that walks from noise to images along a decreasing list of times."""

    @property
    @abstractmethod
    def times(self) -> tuple[float, ...]:
        """The times visited, decreasing, all above 0; sampling ends at 0."""

    @abstractmethod
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] (up to the sampler's clipping)."""

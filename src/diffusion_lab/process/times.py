"""How training draws its times."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion_lab.process.schedules import NoiseSchedule


class TimeDraws(Protocol):
    """The part of a step's randomness that times need."""

    def times(self) -> Tensor:
        """One number in [0, 1) for each image of this process: [B], float64."""


class TimeDistribution(ABC):
    """A distribution over times, with the weights that keep the expected loss that of uniform times."""

    @abstractmethod
    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        """Times [B], float64, and loss weights [B], float32."""

    def update(self, t: Tensor, loss: Tensor) -> None:  # noqa: B027 (most have nothing to learn, and say nothing)
        """Tells the distribution the losses [B] met at times [B]."""


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """Every time alike (Ho et al. 2020, algorithm 1)."""

    schedule: NoiseSchedule

    def sample(self, draws: TimeDraws) -> tuple[Tensor, Tensor]:
        t = self.schedule.quantile(draws.times())
        return t, torch.ones_like(t, dtype=torch.float32)

"""The averaged copy of a network, and the rules by which its decay grows."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Decay(ABC):
    """How much of the average stays at each update."""

    @abstractmethod
    def __call__(self, num_updates: int) -> float:
        """The decay, in [0, 1), of the update that follows `num_updates` earlier ones."""


@dataclass(frozen=True)
class ConstantDecay(Decay):
    """The same at every update, starting from the initial weights (Ho et al. 2020, appendix B)."""

    decay: float = 0.9999

    def __post_init__(self) -> None:
        _require_decay("decay", self.decay)

    def __call__(self, num_updates: int) -> float:
        return self.decay


@dataclass(frozen=True)
class RampedDecay(Decay):
    """min(max_decay, (1 + n) / (10 + n)) after n updates: short runs are not held back by their first weights.

    The rule of TensorFlow's ExponentialMovingAverage, used by Song et al. (2021) and by latent diffusion.
    """

    max_decay: float = 0.9999

    def __post_init__(self) -> None:
        _require_decay("max_decay", self.max_decay)

    def __call__(self, num_updates: int) -> float:
        return min(self.max_decay, (1 + num_updates) / (10 + num_updates))


def _require_decay(name: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"{name} must be in [0, 1), got {decay}.")


class EMA(nn.Module):
    """A second network that follows the trained one. It is only ever read: it never trains and never drops out.

    Parameters are averaged; buffers are copied.
    """

    num_updates: Tensor

    def __init__(self, network: nn.Module, decay: Decay) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.eval()

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the weights of `network`, by one update."""
        weight = 1 - self.decay(int(self.num_updates))
        averages: list[Tensor] = list(self.network.parameters())
        parameters: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, parameters, weight)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
        self.num_updates += 1

    def train(self, mode: bool = True) -> "EMA":
        return super().train(False)

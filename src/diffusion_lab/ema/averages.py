"""Averaged copies of a network, and the rules by which their decays grow."""

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

RAW = "raw"
"""What the trained network is called beside its averages."""

LARGEST_WIDTH = 0.288
"""Of a power-function average: at 1 / sqrt(12) = 0.2887 all steps weigh the same."""


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


@dataclass(frozen=True)
class HalfLifeDecay(Decay):
    """A step's weight halves every half_life_images of training (Karras et al. 2022, appendix F.2).

    batch_size: images a step, over all processes.  rampup_ratio: the half-life is at most this share of the images seen
    so far, so that short runs are not held back by their first weights; None lets it be whole from the start.
    """

    half_life_images: float
    batch_size: int
    rampup_ratio: float | None = 0.05

    def __post_init__(self) -> None:
        for name in ("half_life_images", "batch_size", "rampup_ratio"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")

    def __call__(self, num_updates: int) -> float:
        half_life = self.half_life_images
        if self.rampup_ratio is not None:
            half_life = min(half_life, num_updates * self.batch_size * self.rampup_ratio)
        return 0.5 ** (self.batch_size / half_life) if half_life else 0.0


@dataclass(frozen=True)
class PowerFunctionDecay(Decay):
    """(1 - 1 / t)^(exponent + 1) at step t: step i then weighs as i^exponent (Karras et al. 2024, eq. 127).

    relative_width: standard deviation of the steps under their weights, as a share of the training so far (sigma_rel).
    Whatever the length of the run, the average keeps this shape; the first weights leave it at the first step.
    """

    relative_width: float

    def __post_init__(self) -> None:
        if not 0 < self.relative_width <= LARGEST_WIDTH:
            raise ValueError(f"relative_width must be in (0, {LARGEST_WIDTH}], got {self.relative_width}.")

    @cached_property
    def exponent(self) -> float:
        """The largest root of (g + 2)^2 (g + 3) = (g + 1) / relative_width^2 (Karras et al. 2024, eq. 126)."""
        ratio = self.relative_width**-2
        return float(np.roots((1.0, 7.0, 16.0 - ratio, 12.0 - ratio)).real.max())

    def __call__(self, num_updates: int) -> float:
        step = num_updates + 1
        return float((1 - 1 / step) ** (self.exponent + 1))


def _require_decay(name: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"{name} must be in [0, 1), got {decay}.")


class EMA(nn.Module):
    """Networks that follow the trained one, each by its own rule. They are only ever read: none trains or drops out.

    Parameters are averaged; buffers are copied. The first average is the one that is sampled.
    """

    def __init__(self, network: nn.Module, decays: Mapping[str, Decay]) -> None:
        """decays: the rule of each average, by the average's name.  Raises ValueError where there is none."""
        super().__init__()
        _require_averages(decays)
        self.decays = dict(decays)
        self.networks = nn.ModuleDict({name: copy.deepcopy(network).requires_grad_(False) for name in decays})
        # Walking through a network's modules costs as much as the update itself. Buffers may be replaced: not kept.
        self._averaged: dict[str, list[Tensor]] = {
            name: [*average.parameters()] for name, average in self.networks.items()
        }
        self._has_buffers = any(True for _ in network.buffers())
        self._followed: tuple[weakref.ref[nn.Module], list[Tensor]] | None = None
        self.num_updates = 0  # not a tensor: reading one would make every step wait for the device
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The average that is sampled."""
        return self.networks[next(iter(self.decays))]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the averages towards the weights of `network`, by one update."""
        for name, decay in self.decays.items():
            torch._foreach_lerp_(self._averaged[name], self._parameters_of(network), 1 - decay(self.num_updates))
            if self._has_buffers:
                for average, buffer in zip(self.networks[name].buffers(), network.buffers(), strict=True):
                    average.copy_(buffer)
        self.num_updates += 1

    def _parameters_of(self, network: nn.Module) -> list[Tensor]:
        if self._followed is None or self._followed[0]() is not network:
            self._followed = weakref.ref(network), list(network.parameters())
        return self._followed[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_followed": None}  # a copy follows whatever it is updated by first

    def train(self, mode: bool = True) -> "EMA":
        return super().train(False)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.num_updates)  # checkpoints that load safely hold tensors and plain values alone

    def set_extra_state(self, state: Tensor) -> None:
        self.num_updates = int(state)


def _require_averages(decays: Mapping[str, Decay]) -> None:
    if not decays:
        raise ValueError(f"ema.decays must name at least one average, got {decays}.")
    for name, decay in decays.items():
        if not str(name).isidentifier() or name == RAW or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"ema.decays must name averages by plain words other than {RAW}, got {name}.")
        if not isinstance(decay, Decay):
            raise ValueError(f"ema.decays.{name} must be a decay, got {decay}.")

"""Averaged copies of a network, and the rules for their decays."""

import copy
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lab.contracts import DataclassInterface

RAW = "raw"
"""Name that selects the trained weights instead of an average."""

LARGEST_WIDTH = 0.288
"""Largest EMA length of a power-function average; at 1 / sqrt(12) = 0.2887 all steps have the same weight."""


class Decay(DataclassInterface):
    """A rule for the decay of each update: average = decay * average + (1 - decay) * weights.

    Each rule raises ValueError for settings out of their ranges.
    """

    @abstractmethod
    def __call__(self, num_updates: int) -> float:
        """Return the decay, in [0, 1), of the update after `num_updates` earlier updates."""


@dataclass(frozen=True)
class ConstantDecay(Decay):
    """The same decay for every update. The average starts at the initial weights (Ho et al. 2020, appendix B).

    decay: decay, in [0, 1).

    >>> from diffusion_lab import ConstantDecay
    >>> ConstantDecay(0.9999)(num_updates=0)
    0.9999
    """

    decay: float = 0.9999

    def __post_init__(self) -> None:
        _require_decay("decay", self.decay)

    def __call__(self, num_updates: int) -> float:
        return self.decay


@dataclass(frozen=True)
class RampedDecay(Decay):
    """min(max_decay, (1 + n) / (10 + n)) after n updates, so that short runs forget their initial weights.

    This is the rule of TensorFlow's ExponentialMovingAverage, used by Song et al. (2021) and by latent diffusion.
    max_decay: largest decay, in [0, 1).

    >>> from diffusion_lab import RampedDecay
    >>> RampedDecay()(num_updates=0), RampedDecay()(num_updates=10**6)
    (0.1, 0.9999)
    """

    max_decay: float = 0.9999

    def __post_init__(self) -> None:
        _require_decay("max_decay", self.max_decay)

    def __call__(self, num_updates: int) -> float:
        return min(self.max_decay, (1 + num_updates) / (10 + num_updates))


@dataclass(frozen=True)
class HalfLifeDecay(Decay):
    """A decay that halves the weight of a step every half_life_images images (Karras et al. 2022, appendix F.2).

    half_life_images: half-life in images.  batch_size: number of images per step over all ranks.
    rampup_ratio: upper limit of the half-life as a fraction of the images seen so far, so that short runs forget their
        initial weights; None uses the full half-life from the start.

    >>> from diffusion_lab import HalfLifeDecay
    >>> decay = HalfLifeDecay(half_life_images=1000, batch_size=100, rampup_ratio=None)
    >>> round(decay(num_updates=0) ** 10, 3)  # after 10 steps of 100 images
    0.5
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
    """The decay (1 - 1 / t)^(exponent + 1) at step t (Karras et al. 2024, eq. 127).

    The weight of step i in the average is proportional to i^exponent.
    The shape of the averaging weights does not depend on the duration of the run. The first update removes the initial
    weights of the network from the average.
    relative_width: EMA length, sigma_rel in the paper. It is the standard deviation of the averaging weights over the
        training steps so far, as a fraction of the number of these steps; in (0, 0.288].

    >>> from diffusion_lab import PowerFunctionDecay
    >>> round(PowerFunctionDecay(0.1).exponent, 2)  # the paper's gamma
    6.94
    """

    relative_width: float

    def __post_init__(self) -> None:
        if not 0 < self.relative_width <= LARGEST_WIDTH:
            raise ValueError(f"relative_width must be in (0, {LARGEST_WIDTH}], got {self.relative_width}.")

    @cached_property
    def exponent(self) -> float:
        """The largest root g of (g + 2)^2 (g + 3) = (g + 1) / relative_width^2 (Karras et al. 2024, eq. 126)."""
        ratio = self.relative_width**-2
        return float(np.roots((1.0, 7.0, 16.0 - ratio, 12.0 - ratio)).real.max())

    def __call__(self, num_updates: int) -> float:
        step = num_updates + 1
        return float((1 - 1 / step) ** (self.exponent + 1))


def _require_decay(name: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"{name} must be in [0, 1), got {decay}.")


class EMA(nn.Module):
    """Averages of network weights, each with its own decay.  The averaged networks always stay in evaluation mode.

    Parameters are averaged and buffers are copied. Sampling uses the first average. The averages are at least float32,
    also if the network is bfloat16 or float16: at a decay of 0.9999, an update would be rounded away in these dtypes.

    >>> from diffusion_lab import EMA, ConstantDecay
    >>> zeros, ones = torch.nn.Linear(1, 2), torch.nn.Linear(1, 2)
    >>> _ = torch.nn.init.zeros_(zeros.bias), torch.nn.init.ones_(ones.bias)
    >>> ema = EMA(zeros, {"main": ConstantDecay(0.9)})
    >>> ema.update(ones)
    >>> ema.network.bias
    Parameter containing:
    tensor([0.1000, 0.1000])
    """

    def __init__(self, network: nn.Module, decays: Mapping[str, Decay]) -> None:
        """decays: decay of each average, by the name of the average.  Raises ValueError for none or too many."""
        super().__init__()
        _validate_decays(decays)
        self.decays = dict(decays)
        self.networks = nn.ModuleDict(
            {name: _at_least_float32(copy.deepcopy(network).requires_grad_(False)) for name in decays}
        )
        # Parameters are cached, because iterating over all modules takes as long as the update. Buffers may be replaced
        # and are not cached.
        self._averages: dict[str, list[Tensor]] = {
            name: [*average.parameters()] for name, average in self.networks.items()
        }
        self._has_buffers = any(True for _ in network.buffers())
        self._source: tuple[weakref.ref[nn.Module], list[Tensor]] | None = None
        self._built_from: weakref.ref[nn.Module] | None = weakref.ref(network)
        self.num_updates = 0  # not a tensor, because reading it would synchronize with the device in every step
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The averaged network that sampling uses, which is the first one in `decays`."""
        return self.networks[next(iter(self.decays))]

    def may_average(self, network: nn.Module) -> bool:
        """Return False if the averages are known to be those of another network, with other names, shapes or weights.

        A copy of an EMA has no reference to its network, so that only names and shapes are compared.
        """
        averaged, trained = (dict(each.named_parameters()) for each in (self.network, network))
        if {name: weight.shape for name, weight in averaged.items()} != {
            name: weight.shape for name, weight in trained.items()
        }:
            return False
        if self._built_from is None or self._built_from() is network:
            return True
        return all(torch.equal(weight.to(averaged[name]), averaged[name]) for name, weight in trained.items())

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update all averages with the weights of `network`."""
        source = self._source_parameters(network)
        for name, decay in self.decays.items():
            averages = self._averages[name]
            torch._foreach_lerp_(averages, _in_dtypes_of(averages, source), 1 - decay(self.num_updates))
            if self._has_buffers:
                for average, buffer in zip(self.networks[name].buffers(), network.buffers(), strict=True):
                    average.copy_(buffer)
        self.num_updates += 1

    def _source_parameters(self, network: nn.Module) -> list[Tensor]:
        if self._source is None or self._source[0]() is not network:
            self._source = weakref.ref(network), list(network.parameters())
        return self._source[1]

    def __getstate__(self) -> dict[str, Any]:
        # deepcopy would replace the cached parameters with copies, and references to networks cannot be pickled
        return self.__dict__ | {"_source": None, "_built_from": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EMA":
        # Lightning converts the complete module to the half precision of trainer.precision=bf16-true.
        super()._apply(lambda tensor: _keep_float32(tensor, fn(tensor)), recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> "EMA":
        return super().train(False)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.num_updates)  # loads with weights_only=True

    def set_extra_state(self, state: Tensor) -> None:
        self.num_updates = int(state)


def _is_half(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32


def _at_least_float32(network: nn.Module) -> nn.Module:
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.float() if _is_half(tensor) else tensor.data
    return network


def _keep_float32(tensor: Tensor, converted: Tensor) -> Tensor:
    """Return `converted`, or `tensor` on its device and with its strides if `converted` is in half precision."""
    if not _is_half(converted) or not tensor.is_floating_point():
        return converted
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.empty_like(converted, dtype=dtype).copy_(tensor)


def _in_dtypes_of(averages: list[Tensor], source: list[Tensor]) -> list[Tensor]:
    """Return the tensors of `source`, converted if they have other dtypes than `averages`."""
    if all(average.dtype == tensor.dtype for average, tensor in zip(averages, source, strict=True)):
        return source
    return [tensor.to(average.dtype) for average, tensor in zip(averages, source, strict=True)]


MAX_AVERAGES = 100
"""Largest number of averages: each is a copy of the network, and a config of other people could name thousands."""


def _validate_decays(decays: Mapping[str, Decay]) -> None:
    if not decays:
        raise ValueError(f"ema.decays must have at least one average, got {decays}.")
    if len(decays) > MAX_AVERAGES:
        raise ValueError(f"ema.decays must have at most {MAX_AVERAGES} averages, got {len(decays)}.")
    for name, decay in decays.items():
        if not str(name).isidentifier() or name == RAW or hasattr(nn.ModuleDict(), name):
            raise ValueError(
                f"keys of ema.decays must be identifiers other than {RAW} and the attribute names of nn.ModuleDict, "
                f"got {name}."
            )
        if not isinstance(decay, Decay):
            raise ValueError(f"ema.decays.{name} must be a Decay, got {decay}.")

"""Denoisers: estimators of the clean image. Samplers use networks only through a denoiser."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusion_lab.contracts import described, require_instance
from diffusion_lab.networks import Condition, Network, require_output
from diffusion_lab.process import GaussianProcess, Preconditioning, Prediction, split_output


@dataclass(frozen=True)
class Estimate:
    """The output of a denoiser.

    x_0: the expected clean image, [B, C, H, W].
    variance_output: the network output for the reverse variance, in the shape of x_0, or None if the variance is fixed.
        `Variance` interprets this output, because the variance depends on both times of a sampling step, t and s.
    gradient: gradient of a classifier's log-probability with respect to x_t, times the guidance scale, in the shape of
        x_0, or None without classifier guidance. Ancestral sampling shifts the mean of its step by the gradient; all
        other samplers shift the estimate of x_0 (see `samplers.base`).
    clip_mean: whether ancestral sampling computes the mean of a step from the clipped x_0, see `PosteriorMean`.
    """

    x_0: Tensor
    variance_output: Tensor | None = None
    gradient: Tensor | None = None
    clip_mean: bool = True


class DenoiserLike(Protocol):
    """Protocol of denoisers. Guidance wraps a denoiser and is itself a denoiser."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """Estimate the clean images.  x_t: noisy images, [B, C, H, W].  t: times, [B]."""


def require_estimate(estimate: Any, denoiser: Any) -> Estimate:
    """Return the output of a denoiser.  Raises ValueError unless it is an `Estimate`."""
    if isinstance(estimate, Estimate):
        return estimate
    name = getattr(denoiser, "__name__", type(denoiser).__name__)
    raise ValueError(
        f"`denoiser` must return an Estimate, such as Estimate(x_0), got {described(estimate)} from {name}; for a "
        f"network or a function that predicts the noise, pass Denoiser({name}, process, Epsilon())."
    )


def require_denoiser(denoiser: Any) -> None:
    """Raise ValueError unless an object can be called as a denoiser."""
    _require_no_module(denoiser, "denoiser", "a Denoiser")
    if callable(denoiser) and takes_three(denoiser):
        return
    name = getattr(denoiser, "__name__", type(denoiser).__name__)
    raise ValueError(
        f"`denoiser` must be a Denoiser or a function of (x_t, t, condition) that returns an Estimate, got {name}; for "
        f"a function of (x_t, time) that predicts the noise, pass Denoiser({name}, process, Epsilon())."
    )


def _require_no_module(value: Any, name: str, accepted: str) -> None:
    """Raise ValueError for a module in training, whose method `denoiser` builds a denoiser with its average."""
    if callable(getattr(value, "denoiser", None)) and callable(getattr(value, "sample", None)):
        raise ValueError(
            f"`{name}` must be {accepted}, got {described(value)}; module.denoiser() returns its Denoiser, and "
            "module.sample(seeds) generates images."
        )


@dataclass(frozen=True)
class Denoiser:
    """Denoiser that consists of a network, its diffusion process, and its prediction type (such as noise or velocity).

    network: network, or any function of (x_t, time, condition) or (x_t, time) that returns the predicted quantity,
        [B, C, H, W], see `Network.forward`.
    process: forward process of the network, or its noise schedule.  prediction: quantity that the network predicts.
    Every continuous time t is accepted, also for a network that was trained with a discrete schedule.

    >>> from diffusion_lab import DDIM, CosineSchedule, Denoiser, Epsilon
    >>> def noise(x_t, time):  # the noise of black images
    ...     alpha_t, sigma_t = CosineSchedule().coefficients((time[0] + 1) / 1000)
    ...     return (x_t + alpha_t) / sigma_t
    >>> denoiser = Denoiser(noise, CosineSchedule(), Epsilon())
    >>> DDIM(CosineSchedule()).sample(denoiser, torch.randn(2, 3, 16, 16)).mean()
    tensor(-1.)
    """

    network: Network | Callable[..., Tensor]
    process: GaussianProcess
    prediction: Prediction

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", GaussianProcess.of(self.process))
        require_instance(self.prediction, Prediction, "prediction")
        _require_no_module(self.network, "network", "a Network")
        if not callable(self.network):
            raise ValueError(
                "`network` must be a Network or a function of (x_t, time, condition) or (x_t, time), got "
                f"{described(self.network)}."
            )

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition | Tensor | None = None) -> Estimate:
        preconditioning = self._preconditioning(t)
        x_in, time = preconditioning.inputs(x_t)
        output = self.network(x_in, time, *([Condition.of(condition)] if self._takes_condition else []))
        require_output(self.network, output, x_t)
        output, variance_output = split_output(output.float(), channels=x_t.shape[1])
        return Estimate(preconditioning.x_0(output, x_t), variance_output, clip_mean=self.prediction.clip_mean)

    @cached_property
    def _takes_condition(self) -> bool:
        """Whether the network takes a third argument."""
        if isinstance(self.network, Network):
            return True
        return takes_three(self.network)

    def _preconditioning(self, t: Tensor) -> Preconditioning:
        # Samplers pass one time for all images, expanded without a copy, and the same times for every batch. The
        # preconditioning at such a time is therefore cached.
        if t.stride() == (0,):
            try:
                return _cached_at_one_time(self.prediction, self.process, float(t[0]))
            except TypeError:  # the user's own prediction or schedule is not hashable
                return _at_one_time(self.prediction, self.process, float(t[0]))
        return self.prediction.preconditioning(t, self.process.unbounded)


def takes_three(function: Callable[..., Any]) -> bool:
    """Return whether a function or a module can be called with three arguments."""
    try:
        # forward: the method __call__ of a module takes any arguments
        inspect.signature(getattr(function, "forward", function)).bind(*range(3))
    except TypeError:
        return False
    return True


def _at_one_time(prediction: Prediction, process: GaussianProcess, t: float) -> Preconditioning:
    return prediction.preconditioning(torch.tensor([t], dtype=torch.float64), process.unbounded).as_floats()


_cached_at_one_time = lru_cache(maxsize=8192)(_at_one_time)

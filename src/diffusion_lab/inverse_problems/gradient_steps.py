"""Steps of a sampler that are followed by a step along a gradient at x_t."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike, Estimate
from diffusion_lab.inverse_problems.linearization import Linearization
from diffusion_lab.inverse_problems.measurement import Measurement
from diffusion_lab.inverse_problems.posterior import Steps
from diffusion_lab.networks import Condition
from diffusion_lab.samplers import FixedStepSampler, Noise, OnStep

Gradient = Callable[[Linearization, Tensor], Tensor]
"""(estimate at x_t, t [B]) -> gradient with respect to x_t, [B, C, H, W]."""

Weight = Callable[[Steps, int], float]
"""(steps of the sampler, number k of the state x_t) -> weight of the gradient in the step from k to k + 1."""


@dataclass
class _Recorder:
    """A denoiser without the measurement that also computes the gradient at x_t and stores it until the step ends."""

    denoiser: DenoiserLike
    measurement: Measurement
    gradient: Gradient
    latest: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        at_x_t = Linearization.at(self.denoiser, x_t, t, condition, self.measurement)
        self.latest = self.gradient(at_x_t, t)
        return at_x_t.estimate


@torch.no_grad()
def sample_with_gradients(
    sampler: FixedStepSampler,
    denoiser: DenoiserLike,
    measurement: Measurement,
    noise: Noise | Tensor,
    condition: Condition | Tensor | None,
    on_step: OnStep | None,
    gradient: Gradient,
    weight: Weight,
) -> Tensor:
    """Return images after steps of a sampler without the measurement, each followed by x_s + weight * gradient.

    sampler: sampler that evaluates the denoiser once in each step, at x_t.
    denoiser, noise, condition, on_step: see `Sampler.sample`.  gradient, weight: see `Gradient` and `Weight`.
    """
    sampler.estimator(denoiser, condition)  # raises for a denoiser of another process
    recorder = _Recorder(denoiser, measurement, gradient)
    steps = Steps(sampler, recorder, noise, condition)
    x_t = steps.start()
    for k in range(len(steps)):
        x_s, x_0 = steps.step(x_t, k)
        x_t = x_s + weight(steps, k) * recorder.latest
        if on_step is not None:
            on_step(k + 1, x_t, x_0)
    return x_t

"""Adaptive Runge-Kutta on the probability flow."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import Noise, OnStep, Sampler, noise_sources
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.probability_flow import STAGES, FlowCoordinates, dormand_prince
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class RK45(Sampler):
    """Probability flow solved with adaptive steps, then the estimate of x_0 (Song et al. 2021, section 4.3).

    The flow is solved from the first to the last of `times`, and each image has its own steps. The other times affect
    only the calls of on_step: one call for each time, after all images have passed this time.
    process, num_steps, time_grid, clipping: see `Sampler`.
    rtol, atol: relative and absolute tolerance of the error of a step, for images of unit standard deviation.
    Raises ValueError unless both are above 0. `sample` raises FloatingPointError if the steps become too small.

    >>> from diffusion_lab import RK45, CosineSchedule, GaussianProcess
    >>> RK45(GaussianProcess(CosineSchedule()), num_steps=2, rtol=1e-4, atol=1e-4).times
    (1.0, 0.001)
    """

    has_adaptive_steps: ClassVar[bool] = True

    process: GaussianProcess
    num_steps: int | None = 10
    rtol: float = 1e-3
    atol: float = 1e-3
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")

    @property
    def num_evaluations(self) -> int:
        if len(self.times) == 1:
            return 1
        # The steps of a method of order 5 are proportional to the fifth root of the tolerance. The factor 4 results in
        # 56, 86 and 134 evaluations for tolerances of 1e-2, 1e-3 and 1e-4; a U-Net of the quick start took 62, 86, 128.
        num_steps = math.ceil(4 * math.pow(self.rtol + self.atol, -0.2))
        return 2 + num_steps * (len(STAGES) - 1)

    @torch.no_grad()
    def sample(
        self,
        denoiser: DenoiserLike,
        noise: Noise | Tensor,
        condition: Condition | Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        estimate, flow = self.estimator(denoiser, condition), FlowCoordinates(self.process)
        t = torch.tensor(self.times, dtype=torch.float64)
        if flow.angle(t[-1]) == 0:  # the first step adds no noise, so that the slope would be 0 / 0
            t[-1] = flow.time(torch.tensor(1e-3, dtype=torch.float64))
        angles, radii = flow.angle(t), flow.radius(t)
        z = noise_sources(noise)[0].draw() * self.initial_std / float(radii[0])
        shape, last_x_0, num_done = z.shape[1:], torch.zeros_like(z), 0

        def slope(state: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
            time, z = flow.time(angle), state.view(len(state), *shape)
            x_t = z * self.process.widen(flow.radius(time), z)
            x_0 = estimate.select(rows)(x_t, time).x_0
            last_x_0[rows.to(z.device)] = x_0
            return flow.velocity(z, x_0, angle).flatten(1)

        def on_round(angle: Tensor, state: Tensor) -> None:
            nonlocal num_done
            slowest = float(angle.max())
            while on_step is not None and num_done < len(t) - 1 and slowest <= float(angles[num_done + 1]) + 1e-12:
                num_done += 1
                z = state.view(len(state), *shape)
                on_step(num_done, z * self.process.widen(flow.radius(flow.time(angle)), z), last_x_0)

        if len(t) > 1:
            start, end = float(angles[0]), float(angles[-1])
            z = dormand_prince(slope, z.flatten(1), start, end, rtol=self.rtol, atol=self.atol, on_round=on_round)
        x_t = z.view(-1, *shape) * float(radii[-1])
        x_0 = estimate(x_t, t[-1]).x_0
        if on_step is not None:
            on_step(len(t), x_0, x_0)
        return x_0

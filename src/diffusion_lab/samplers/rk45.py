"""Adaptive Runge-Kutta on the probability flow."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import Noise, OnStep, Sampler
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.probability_flow import Circle, dormand_prince
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class RK45(Sampler):
    """The flow to the smallest time within a tolerance, then the estimate of x_0 (Song et al. 2021, section 4.3).

    Every image takes its own steps. `times` are only the moments at which on_step is told, once all have passed.
    rtol, atol: largest error of a step, relative and absolute, on images of unit size.
    """

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

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        circle = Circle(self.process)
        t = torch.tensor(self.times, dtype=torch.float64)
        if circle.angle(t[-1]) == 0:  # a first step without noise: the flow's slope is 0 / 0 at its end
            t[-1] = circle.time(torch.tensor(1e-3, dtype=torch.float64))
        angles, radii = circle.angle(t), circle.radius(t)
        z = self.start(noise) / float(radii[0])
        shape, latest, reported = z.shape[1:], torch.zeros_like(z), 0

        def slope(state: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
            at = circle.time(angle)
            z = state.view(len(state), *shape)
            x_t = z * self.process.widen(circle.radius(at), z)
            answer = denoiser(x_t, at, condition.select(rows))
            latest[rows.to(z.device)] = x_0 = self.shifted(replace(answer, x_0=self.clipping(answer.x_0)), at)
            return circle.velocity(z, x_0, angle).flatten(1)

        def on_round(angle: Tensor, state: Tensor) -> None:
            nonlocal reported
            slowest = float(angle.max())
            while on_step is not None and reported < len(t) - 1 and slowest <= float(angles[reported + 1]) + 1e-12:
                reported += 1
                images = state.view(len(state), *shape)
                on_step(reported, images * self.process.widen(circle.radius(circle.time(angle)), images), latest)

        if len(t) > 1:
            ends = float(angles[0]), float(angles[-1])
            z = dormand_prince(slope, z.flatten(1), *ends, rtol=self.rtol, atol=self.atol, on_round=on_round)
        x_t = z.view(-1, *shape) * float(radii[-1])
        x_0 = self.estimate(denoiser, x_t, t[-1], condition).x_0
        if on_step is not None:
            on_step(len(t), x_0, x_0)
        return x_0

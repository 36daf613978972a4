"""Annealed Langevin dynamics: the sampler of score matching."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import Noise, OnStep, Sampler
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """At each noise level num_updates Langevin steps, then the level below (Song & Ermon 2019, algorithm 1).

    Ends with the estimate of x_0 at the last level (Song & Ermon 2020, technique 5, and appendix). Where alpha is not
    1, x is rescaled with it between levels.
    step_size: of an update, in units of the level's variance sigma_t^2; the paper's epsilon / sigma_L^2 = 0.2.
    """

    process: GaussianProcess
    num_steps: int | None = 100
    num_updates: int = 10
    step_size: float = 0.2
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_updates < 1:
            raise ValueError(f"num_updates must be at least 1, got {self.num_updates}.")
        if not 0 < self.step_size < 4:
            raise ValueError(f"step_size must be in (0, 4), beyond which the dynamics diverge, got {self.step_size}.")

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        t, s = self.steps()
        levels = torch.stack(self.process.schedule.coefficients(t), dim=1).tolist()
        pulled, spread = self.step_size / 2, self.step_size**0.5

        x_t = self.start(noise)
        for i, (alpha_t, sigma_t) in enumerate(levels):
            for _ in range(self.num_updates):
                x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
                # The score is -(x_t - alpha_t x_0) / sigma_t^2, and the step size is in units of sigma_t^2.
                x_t = x_t - pulled * (x_t - alpha_t * x_0) + spread * sigma_t * noise.draw()
            if s[i] > 0:
                x_t = levels[i + 1][0] / alpha_t * x_t if alpha_t > 0 else x_t
            else:
                x_t = x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t

"""SDE-DPM-Solver++: the multistep solver of the reverse stochastic equation."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import Noise, OnStep, Sampler
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.dpm_solver import extrapolation
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class DPMSolverSDE(Sampler):
    """SDE-DPM-Solver++(2M): ancestral, x_0 extrapolated along the last two estimates (Lu et al. 2022, eq. 18).

    Its first-order part is the posterior at the estimate, with the small variance.
    """

    process: GaussianProcess
    num_steps: int | None = 20
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        t, s = self.steps()
        on_x_0, on_x_t, variance = self.process.posterior_coefficients(s, t)
        share = extrapolation(self.process, t, s)
        weights = torch.stack([on_x_0, on_x_t, share, variance.sqrt()], dim=1).tolist()

        x_t, last = self.start(noise), None
        for i, (on_x_0, on_x_t, share, std) in enumerate(weights):
            x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
            leading = x_0 if last is None or share == 0 else x_0 + share * (x_0 - last)
            x_t, last = on_x_0 * leading + on_x_t * x_t, x_0
            if std > 0:
                x_t = x_t + std * noise.draw()
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t

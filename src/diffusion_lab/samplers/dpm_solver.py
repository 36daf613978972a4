"""DPM-Solver++: a multistep solver of the probability flow in log-SNR."""

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
class DPMSolver(Sampler):
    """DPM-Solver++(2M): x_0 extrapolated along the last two estimates (Lu et al. 2022, algorithm 2).

    Second order at one evaluation a step. The first and the last step, to time 0, have first order.
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
        alpha_t, sigma_t = self.process.schedule.coefficients(t)
        alpha_s, sigma_s = self.process.schedule.coefficients(s)
        kept = torch.where(sigma_t > 0, sigma_s / sigma_t, 0.0)
        # alpha_s (1 - exp(-h)), h the step in log(alpha / sigma), in a form that holds at both ends of the schedule.
        weights = torch.stack([alpha_s - kept * alpha_t, kept, extrapolation(self.process, t, s)], dim=1).tolist()

        x_t, last = self.start(noise), None
        for i, (on_x_0, on_x_t, share) in enumerate(weights):
            x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
            leading = x_0 if last is None or share == 0 else x_0 + share * (x_0 - last)
            x_t, last = on_x_0 * leading + on_x_t * x_t, x_0
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t


def extrapolation(process: GaussianProcess, t: Tensor, s: Tensor) -> Tensor:
    """How far each step from t to s extrapolates: half its length over that of the step before, [num_steps].

    0 where there is no step before, and where one of the two reaches to time 0 or starts from no signal at all.
    """
    step = (process.schedule.log_snr(s) - process.schedule.log_snr(t)) / 2
    share = torch.zeros_like(step)
    share[1:] = step[1:] / (2 * step[:-1])
    return torch.where(share.isfinite(), share, 0.0)

"""Predictor-corrector sampling: an ancestral step, and Langevin steps at each level."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.process import FixedLarge, GaussianProcess, Variance
from diffusion_lab.samplers.base import Noise, OnStep, Sampler, reverse_std
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """num_corrections Langevin steps at t, then one reverse step to s (Song et al. 2021, algorithms 1, 4 and 5).

    variance: of the predictor; with the large one it is the paper's "ancestral" of VP, its "reverse diffusion" of VE.
    snr: of a correction, the paper's r. Norms are of each image alone: the paper's code averages over the batch, which
    makes an image depend on its neighbours.
    """

    process: GaussianProcess
    num_steps: int | None = 1000
    num_corrections: int = 1
    snr: float = 0.16
    variance: Variance = field(default_factory=FixedLarge)
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_corrections < 0:
            raise ValueError(f"num_corrections must be at least 0, got {self.num_corrections}.")
        if self.snr <= 0:
            raise ValueError(f"snr must be above 0, got {self.snr}.")

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        t, s = self.steps()
        alpha_t, sigma_t = self.process.schedule.coefficients(t)
        on_x_0, on_x_t, _ = self.process.posterior_coefficients(s, t)
        retained = self.process.transition(s, t)[0] ** 2  # the paper's alpha, 1 - beta of the step
        table = torch.stack([alpha_t, sigma_t, on_x_0, on_x_t, retained], dim=1).tolist()

        std = reverse_std(self.variance, self.process, t, s)

        x_t = self.start(noise)
        for i, (alpha_t, sigma_t, on_x_0, on_x_t, retained) in enumerate(table):
            for _ in range(self.num_corrections if sigma_t > 0 else 0):
                x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
                x_t = self._corrected(x_t, (alpha_t * x_0 - x_t) / sigma_t**2, noise.draw(), retained)
            estimate = self.estimate(denoiser, x_t, t[i], condition)
            x_0 = estimate.x_0
            x_t = on_x_0 * x_0 + on_x_t * x_t
            if s[i] > 0:
                x_t = x_t + std(i, x_t, estimate) * noise.draw()
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t

    def _corrected(self, x_t: Tensor, score: Tensor, noise: Tensor, retained: float) -> Tensor:
        length = 2 * retained * (self.snr * _norm(noise) / _norm(score)) ** 2
        return x_t + length * score + (2 * length).sqrt() * noise


def _norm(images: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norm.reshape(-1, *[1] * (images.ndim - 1))

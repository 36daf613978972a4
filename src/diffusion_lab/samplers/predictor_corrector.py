"""Predictor-corrector sampling: Langevin steps and an ancestral step at each noise level."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.contracts import added
from diffusion_lab.process import FixedLarge, GaussianProcess, Variance
from diffusion_lab.samplers.ancestral import fixed_stds, learned_std
from diffusion_lab.samplers.base import FixedStepSampler, StepContext
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes

PREDICTORS = ("ancestral", "reverse_diffusion")


@dataclass(frozen=True)
class PredictorCorrector(FixedStepSampler):
    """num_corrections Langevin steps at t, then one reverse step to s (Song et al. 2021, algorithms 1, 4 and 5).

    process, num_steps, time_grid, clipping: see `Sampler`.
    num_corrections: number of corrections at each time, each with one network evaluation.
    variance: variance of the predictor. With the large variance, the predictor "ancestral" is the paper's "ancestral
        sampling" for VP schedules and the paper's "reverse diffusion" for VE schedules.
    predictor: "ancestral" for the mean of ancestral sampling, or "reverse_diffusion" for (2 - sqrt(1 - beta)) x + beta
        score (eq. 46), which requires small steps. The means are equal for VE schedules. The noise of eq. 46 is that of
        the large variance.
    snr: the paper's r, the signal-to-noise ratio of a correction. The norms of the score and of the noise are computed
        for each image. The paper's code averages the norms over the batch, so that an image depends on the other images
        of its batch.
    Raises ValueError unless num_corrections is at least 0 and snr is above 0, and for another predictor.

    >>> from diffusion_lab import GaussianProcess, PredictorCorrector, VPSchedule
    >>> len(PredictorCorrector(GaussianProcess(VPSchedule()), num_corrections=2).times)
    1000
    """

    process: GaussianProcess
    num_steps: int | None = 1000
    num_corrections: int = 1
    snr: float = 0.16
    variance: Variance = field(default_factory=FixedLarge)
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)
    predictor: str = added("ancestral")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_corrections < 0:
            raise ValueError(f"num_corrections must be at least 0, got {self.num_corrections}.")
        if self.snr <= 0:
            raise ValueError(f"snr must be above 0, got {self.snr}.")
        if self.predictor not in PREDICTORS:
            raise ValueError(f"predictor must be {' or '.join(PREDICTORS)}, got {self.predictor}.")

    @property
    def num_evaluations(self) -> int:
        _, sigma_t = self.process.schedule.coefficients(torch.tensor(self.times, dtype=torch.float64))
        return len(self.times) + self.num_corrections * int((sigma_t > 0).sum())

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.process.schedule.coefficients(t)
        on_x_0, on_x_t, _ = self.process.posterior_coefficients(s, t)
        scale, added_variance = self.process.transition(s, t)
        if self.predictor == "reverse_diffusion":
            # The score is (alpha_t x_0 - x_t) / sigma_t^2. Without noise at t, the mean is x_0 for both predictors.
            on_score = torch.where(sigma_t > 0, added_variance / sigma_t**2, 0.0)
            on_x_0 = torch.where(sigma_t > 0, on_score * alpha_t, on_x_0)
            on_x_t = torch.where(sigma_t > 0, 2 - scale - on_score, on_x_t)
        alpha_step = scale**2  # the paper's alpha_i = 1 - beta_i
        fixed_std = fixed_stds(self.variance, self.process, t, s)
        return t, torch.stack([s, alpha_t, sigma_t, alpha_step, on_x_0, on_x_t, fixed_std], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        s, alpha_t, sigma_t, alpha_step, on_x_0, on_x_t, fixed_std = coefficients
        for _ in range(self.num_corrections if sigma_t > 0 else 0):
            score = (alpha_t * context.estimate(x_t, t).x_0 - x_t) / sigma_t**2
            x_t = self._correct(x_t, score, context.noise.draw(), alpha_step)
        estimate = context.estimate(x_t, t)
        x_s = on_x_0 * estimate.x_0 + on_x_t * x_t
        if s > 0:
            std = learned_std(self.variance, self.process, t, s, estimate) if self.variance.learned else fixed_std
            x_s = x_s + std * context.noise.draw()
        return x_s, estimate.x_0

    def _correct(self, x_t: Tensor, score: Tensor, noise: Tensor, alpha_step: float) -> Tensor:
        step_size = 2 * alpha_step * (self.snr * _norm(noise) / _norm(score)) ** 2
        return x_t + step_size * score + (2 * step_size).sqrt() * noise


def _norm(images: Tensor) -> Tensor:
    """Return the Euclidean norm of each image: [B, 1, 1, 1]."""
    norm: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norm.reshape(-1, *[1] * (images.ndim - 1))

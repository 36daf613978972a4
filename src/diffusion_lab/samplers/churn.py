"""Noise added back before a step, which turns a solver of the flow into a stochastic sampler."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess


@dataclass(frozen=True)
class Churn:
    """From noise level sigma / alpha up to (1 + gamma) times it, before each step (Karras et al. 2022, algorithm 2).

    amount: over all steps; 0 adds none.  sigma_min, sigma_max: the levels at which noise is added.
    noise_scale: of the added noise; a little above 1 makes up for what the denoiser takes away too much.
    """

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise ValueError(f"amount must be at least 0, got {self.amount}.")
        if not 0 <= self.sigma_min <= self.sigma_max:
            raise ValueError(f"sigma_min must be in [0, sigma_max={self.sigma_max:g}], got {self.sigma_min:g}.")

    def __call__(self, process: GaussianProcess, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For steps that start at t [num_steps]: the later times they are moved to, and the move x -> a x + b noise.

        Each float64 [num_steps]; a time is never moved past the schedule's last.
        """
        schedule = process.schedule.continuous
        alpha_t, sigma_t = schedule.coefficients(t)
        level = sigma_t / alpha_t
        gamma = min(self.amount / len(t), math.sqrt(2) - 1)  # the paper's bound: never more new noise than there is
        inside = (level >= self.sigma_min) & (level <= self.sigma_max) & (gamma > 0)
        raised = torch.where(inside, schedule.at_log_snr(-2 * (level * (1 + gamma)).log()), t)
        scale, variance = GaussianProcess(schedule).transition(t, raised)
        scale, variance = torch.where(inside, scale, 1.0), torch.where(inside, variance, 0.0)
        return raised, scale, variance.sqrt() * self.noise_scale

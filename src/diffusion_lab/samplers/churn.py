"""Addition of noise before each step, which turns a probability-flow solver into a stochastic sampler."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.contracts import added
from diffusion_lab.process import GaussianProcess


@dataclass(frozen=True)
class Churn:
    """Noise that is added to x_t before each step of a sampler (Karras et al. 2022, algorithm 2).

    It raises the noise level sigma / alpha by a factor of 1 + gamma, gamma = min(amount / num_steps, sqrt(2) - 1).
    amount: the paper's S_churn, which is divided among all steps; 0 adds no noise.
    sigma_min, sigma_max: range of the noise levels at which noise is added, the paper's S_tmin and S_tmax.
    noise_scale: factor of the added noise, the paper's S_noise. A value slightly above 1 compensates for denoisers that
        remove too much noise.
    above_t_max: whether the first times may be raised above t_max of the schedule, as in algorithm 2. False limits them
        to t_max, and so do schedules without such times: discrete schedules, and schedules without signal at t_max.
    Raises ValueError unless amount is at least 0 and 0 <= sigma_min <= sigma_max.

    >>> from diffusion_lab import Churn, EDMSchedule, GaussianProcess
    >>> raised, scale, std = Churn(amount=0.25)(GaussianProcess(EDMSchedule()), torch.tensor([2.0]))
    >>> raised, scale, std  # sigma 2.5 from sigma 2 and noise of standard deviation 1.5
    (tensor([2.5000], dtype=torch.float64), tensor([1.], dtype=torch.float64), tensor([1.5000], dtype=torch.float64))
    """

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise_scale: float = 1.0
    above_t_max: bool = added(default=False)

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise ValueError(f"amount must be at least 0, got {self.amount}.")
        if not 0 <= self.sigma_min <= self.sigma_max:
            raise ValueError(f"sigma_min must be in [0, sigma_max={self.sigma_max:g}], got {self.sigma_min:g}.")

    def exceeds(self, process: GaussianProcess, t: Tensor) -> bool:
        """Return whether above_t_max has an effect: whether a step that starts at a time of t is raised above t_max."""
        return self.above_t_max and bool((self(process, t)[0] > process.schedule.t_max).any())

    def __call__(self, process: GaussianProcess, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the raised times of steps that start at t, and a, b of x_raised = a x_t + b noise.

        t and all results: float64 [num_steps].
        """
        schedule = process.schedule.unbounded if self.above_t_max else process.schedule.continuous
        alpha_t, sigma_t = schedule.coefficients(t)
        level = sigma_t / alpha_t
        gamma = min(self.amount / len(t), math.sqrt(2) - 1)  # the paper's bound: added noise <= existing noise
        active = (level >= self.sigma_min) & (level <= self.sigma_max) & (gamma > 0)
        raised = torch.where(active, schedule.at_log_snr(-2 * (level * (1 + gamma)).log()), t)
        scale, variance = GaussianProcess(schedule).transition(t, raised)
        scale, variance = torch.where(active, scale, 1.0), torch.where(active, variance, 0.0)
        return raised, scale, variance.sqrt() * self.noise_scale

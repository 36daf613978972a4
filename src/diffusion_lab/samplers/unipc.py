"""UniPC: a unified predictor-corrector solver of the probability flow."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess
from diffusion_lab.samplers.base import FixedStepSampler, StepContext
from diffusion_lab.samplers.clipping import Clipping, StaticClipping
from diffusion_lab.samplers.time_grids import TimeGrid, UniformTimes


@dataclass(frozen=True)
class UniPC(FixedStepSampler):
    """UniPC that predicts x_0, with B(h) = exp(h) - 1 (Zhao et al. 2023, algorithm 1).

    The estimate at the start of a step also corrects the previous step. There is one network evaluation per step, and
    the correction raises the order by one. The first steps, which have fewer estimates, and the last step have a lower
    order.
    process, num_steps, time_grid, clipping: see `Sampler`.
    order: order of the predictor, 1 to 3.  Raises ValueError for another order.

    >>> from diffusion_lab import CosineSchedule, GaussianProcess, UniPC
    >>> len(UniPC(GaussianProcess(CosineSchedule()), order=3).times)
    10
    """

    process: GaussianProcess
    num_steps: int | None = 10
    order: int = 2
    time_grid: TimeGrid = field(default_factory=UniformTimes)
    clipping: Clipping = field(default_factory=StaticClipping)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}.")

    def prepare_steps(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        schedule = self.process.schedule
        # The paper's lambda, log(alpha / sigma), which is infinite at the end of the last step.
        lambda_t = schedule.log_snr(t) / 2
        lambda_s = torch.cat([lambda_t[1:], torch.full((1,), math.inf, dtype=torch.float64)])
        ends = *schedule.coefficients(t), *schedule.coefficients(s)
        return t, torch.stack([lambda_t, lambda_s, *ends], dim=1)

    def step(self, x_t: Tensor, t: Tensor, coefficients: list[float], context: StepContext) -> tuple[Tensor, Tensor]:
        lambda_t, lambda_s, alpha_t, sigma_t, alpha_s, sigma_s = coefficients
        previous: UniPCStep | None = context.previous
        x_0 = context.estimate(x_t, t).x_0
        if previous is not None:
            x_t = previous.correct(lambda_t, x_0)
        # The paper's alpha_s (1 - exp(-h)), with h = lambda_s - lambda_t, in a form that is finite at both ends.
        on_x_t = sigma_s / sigma_t if sigma_t > 0 else 0.0
        first_order = (alpha_s - on_x_t * alpha_t) * x_0 + on_x_t * x_t
        if not (math.isfinite(lambda_t) and math.isfinite(lambda_s)):
            context.previous = None
            return first_order, x_0
        estimates = [*(previous.estimates if previous is not None else []), (lambda_t, x_0)][-self.order :]
        context.previous = step = UniPCStep(first_order, alpha_s, estimates)
        return step.predict(lambda_s), x_0


@dataclass(frozen=True)
class UniPCStep:
    """One step of UniPC, which is evaluated twice: as a prediction and as a correction.

    first_order: first-order approximation of x_s, where s is the end of the step.  alpha_s: alpha at s.
    estimates: (lambda, x_0) of the latest steps, with this step last.
    """

    first_order: Tensor
    alpha_s: float
    estimates: list[tuple[float, Tensor]]

    def predict(self, lambda_s: float) -> Tensor:
        """Return x_s from the estimates of this step and of the previous steps (UniP)."""
        return self._add_differences(lambda_s, self.estimates[:-1])

    def correct(self, lambda_s: float, x_0: Tensor) -> Tensor:
        """Return x_s from the same estimates and the additional estimate x_0 at s (UniC)."""
        return self._add_differences(lambda_s, [*self.estimates[:-1], (lambda_s, x_0)])

    def _add_differences(self, lambda_s: float, others: list[tuple[float, Tensor]]) -> Tensor:
        """Return first_order plus a weighted sum of the differences between `others` and the estimate at t."""
        if not others:
            return self.first_order
        lambda_t, x_0 = self.estimates[-1]
        h = lambda_s - lambda_t
        ratios = [(other_lambda - lambda_t) / h for other_lambda, _ in others]
        weighted_differences = sum(
            weight / ratio * (other - x_0)
            for weight, ratio, (_, other) in zip(_weights(ratios, h), ratios, others, strict=True)
        )
        return self.first_order - self.alpha_s * math.expm1(-h) * weighted_differences


def _weights(ratios: list[float], h: float) -> list[float]:
    """Solve sum_m a_m r_m^(n-1) = n! phi_(n+1)(-h) / B(-h), n = 1, 2, ..., for a (Zhao et al. 2023, eq. 9 and 11)."""
    if len(ratios) == 1:
        return [0.5]  # the paper's choice for one ratio, which has the same order as the solution
    phi, right_side = math.expm1(-h) / -h, []
    for n in range(1, len(ratios) + 1):
        phi = (phi - 1 / math.factorial(n)) / -h  # phi_(n+1)(z) = (phi_n(z) - 1 / n!) / z
        right_side.append(math.factorial(n) * phi * -h / math.expm1(-h))
    powers = torch.tensor([[ratio**n for ratio in ratios] for n in range(len(ratios))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(right_side, dtype=torch.float64)).tolist()
    return weights

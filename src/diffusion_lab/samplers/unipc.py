"""UniPC: a unified predictor-corrector solver of the probability flow."""

import math
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
class UniPC(Sampler):
    """UniPC in x_0, B(h) = exp(h) - 1: an estimate also corrects the step to it (Zhao et al. 2023, algorithm 1).

    One evaluation a step; the correction lifts the order to one above the predictor's. The first steps, until enough
    estimates are known, and the last have lower order.
    order: of the predictor, 1 to 3.
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

    @torch.no_grad()
    def sample(
        self, denoiser: DenoiserLike, noise: Noise, condition: Condition, on_step: OnStep | None = None
    ) -> Tensor:
        t, s = self.steps()
        schedule = self.process.schedule
        half_log_snr = (schedule.log_snr(t) / 2).tolist()
        ends = torch.stack([*schedule.coefficients(t), *schedule.coefficients(s)], dim=1).tolist()

        x_t = self.start(noise)
        known: list[tuple[float, Tensor]] = []  # (log-SNR / 2, estimate), newest last
        step: Step | None = None
        for i, (alpha_t, sigma_t, alpha_s, sigma_s) in enumerate(ends):
            x_0 = self.estimate(denoiser, x_t, t[i], condition).x_0
            if step is not None:
                x_t = step.corrected(half_log_snr[i], x_0)
            known = [*known, (half_log_snr[i], x_0)][-self.order :] if math.isfinite(half_log_snr[i]) else []
            # alpha_s (1 - exp(-h)), h the step in log(alpha / sigma), in a form that holds at both ends.
            kept = sigma_s / sigma_t if sigma_t > 0 else 0.0
            base = (alpha_s - kept * alpha_t) * x_0 + kept * x_t
            if known and s[i] > 0 and math.isfinite(half_log_snr[i + 1]):
                step = Step(base, alpha_s, known)
                x_t = step.predicted(half_log_snr[i + 1])
            else:
                step, x_t = None, base
            if on_step is not None:
                on_step(i + 1, x_t, x_0)
        return x_t


@dataclass(frozen=True)
class Step:
    """One step of UniPC.  base: its first-order part.  known: (log-SNR / 2, estimate), of its start last."""

    base: Tensor
    alpha_s: float
    known: list[tuple[float, Tensor]]

    def predicted(self, to: float) -> Tensor:
        """The end of the step from the estimates that are known before it."""
        return self._with(to, self.known[:-1])

    def corrected(self, to: float, estimate: Tensor) -> Tensor:
        """The end of the step with the estimate made there."""
        return self._with(to, [*self.known[:-1], (to, estimate)])

    def _with(self, to: float, others: list[tuple[float, Tensor]]) -> Tensor:
        if not others:
            return self.base
        start, x_0 = self.known[-1]
        h = to - start
        ratios = [(at - start) / h for at, _ in others]
        sum_of_differences = sum(
            weight / ratio * (other - x_0)
            for weight, ratio, (_, other) in zip(_weights(ratios, h), ratios, others, strict=True)
        )
        return self.base - self.alpha_s * math.expm1(-h) * sum_of_differences


def _weights(ratios: list[float], h: float) -> list[float]:
    """The a with sum_m a_m r_m^(n-1) = n! phi_(n+1)(-h) / B(-h), n = 1, 2, ... (Zhao et al. 2023, eq. 9 and 11)."""
    if len(ratios) == 1:
        return [0.5]  # the paper's choice where any a serves: one equation that is exact to its order
    phi, wanted = math.expm1(-h) / -h, []
    for n in range(1, len(ratios) + 1):
        phi = (phi - 1 / math.factorial(n)) / -h  # phi_(n+1)(z) = (phi_n(z) - 1 / n!) / z
        wanted.append(math.factorial(n) * phi * -h / math.expm1(-h))
    powers = torch.tensor([[ratio**n for ratio in ratios] for n in range(len(ratios))], dtype=torch.float64)
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64)).tolist()
    return weights

"""The probability flow in one pair of coordinates for all schedules, and a solver with error control per image.

With the angle = atan(sigma / alpha) for time, and z = x_t / sqrt(alpha^2 + sigma^2), every schedule runs along the same
circle: z = cos(angle) x_0 + sin(angle) noise, and dz / d(angle) is the v of Salimans & Ho (2022), appendix D. All of it
is of unit size from data to noise, also where sigma or alpha reaches its end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess, NoiseSchedule

# Dormand & Prince (1980), Table 2: where each stage is asked, on which slopes it builds, the 5th order answer (also the
# last stage's place: its slope is the next step's first), and its difference to the 4th order one.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(states [b, N], angles [b], which rows of the batch they are [b]) -> d(state) / d(angle), [b, N]."""


@dataclass(frozen=True)
class Circle:
    """The coordinates of a process."""

    process: GaussianProcess

    @property
    def schedule(self) -> NoiseSchedule:
        return self.process.schedule.continuous

    def angle(self, t: Tensor) -> Tensor:
        """In [0, pi / 2], float64, shaped as t."""
        alpha_t, sigma_t = self.schedule.coefficients(t)
        return torch.atan2(sigma_t, alpha_t)

    def time(self, angle: Tensor) -> Tensor:
        """The schedule's time at an angle, float64."""
        return self.schedule.at_log_snr(-2 * angle.tan().log())

    def radius(self, t: Tensor) -> Tensor:
        """x_t over z: sqrt(alpha^2 + sigma^2), float64, shaped as t."""
        alpha_t, sigma_t = self.schedule.coefficients(t)
        return torch.hypot(alpha_t, sigma_t)

    def velocity(self, z: Tensor, x_0: Tensor, angle: Tensor) -> Tensor:
        """Dz / d(angle) = (cos z - x_0) / sin, images [B, C, H, W], angle [B]."""
        cos, sin = self.process.widen(angle.cos(), z), self.process.widen(angle.sin(), z)
        return (cos * z - x_0) / sin


def dormand_prince(
    slope: Slope, state: Tensor, start: float, end: float, *, rtol: float, atol: float,
    on_round: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """The state [B, N] at angle `end`, each row with its own steps (Dormand & Prince 1980, order 5, 4 for error).

    A row's error is the root mean square of its numbers' errors over atol + rtol size. Its steps depend on it alone, so
    that an image does not depend on its batch.  on_round: told (angles [B], states [B, N]) after each round of steps.
    Raises FloatingPointError where a row cannot go on, since its slope is not finite.
    """
    state = state.clone()
    angle = torch.full((len(state),), start, dtype=torch.float64)
    step = torch.full_like(angle, (end - start) / 20)
    first_slope = slope(state, angle, torch.arange(len(state)))
    while len(rows := torch.nonzero((angle - end).abs() > 1e-9).flatten()):
        reach = torch.where(step[rows].abs() < (end - angle[rows]).abs(), step[rows], end - angle[rows])
        if bool((reach.abs() < 1e-10).any()):
            raise FloatingPointError("the flow cannot be followed: its slope is not finite or changes without end.")
        here = rows.to(state.device)
        slopes = [first_slope[here]]
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            shifted = state[here] + _sum(weights, slopes) * _column(reach, state)
            slopes.append(slope(shifted, angle[rows] + node * reach, rows))
        error = _sum(ERROR, slopes) * _column(reach, state)
        size = torch.maximum(state[here].abs(), shifted.abs())
        excess = (error / (atol + rtol * size)).double().square().mean(dim=1).sqrt().cpu()
        excess = torch.where(excess.isnan(), torch.inf, excess)
        taken = excess <= 1
        into = here[taken.to(here.device)]
        state[into] = shifted[taken.to(here.device)]
        first_slope[into] = slopes[-1][taken.to(here.device)]
        angle[rows[taken]] += reach[taken]
        # The usual controller: 0.9 for safety, the root of the error's order, never more than 5-fold at once.
        step[rows] = reach * (0.9 * excess.clamp(min=1e-10) ** -0.2).clamp(0.2, 5)
        if on_round is not None:
            on_round(angle, state)
    return state


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for weight, value in zip(weights, slopes, strict=True):
        if weight:
            total = total.add(value, alpha=weight)
    return total


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device, like.dtype)[:, None]

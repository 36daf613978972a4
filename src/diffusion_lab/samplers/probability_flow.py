"""The probability flow in coordinates that are the same for all schedules, and an ODE solver with adaptive steps.

With angle = atan(sigma / alpha) as time and z = x_t / sqrt(alpha^2 + sigma^2), every schedule follows the same circle:
z = cos(angle) x_0 + sin(angle) noise, and dz / d(angle) is the v of Salimans & Ho (2022), appendix D. z and its
derivative have unit scale from data to noise, even if sigma or alpha is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess, NoiseSchedule

# Dormand & Prince (1980), Table 2: the nodes of the stages, the weights of earlier slopes in each stage, and the
# difference between the solutions of order 5 and 4. The last stage is evaluated at the solution of order 5, so its
# slope is also the first slope of the next step.
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
"""(states [b, N], angles [b], indices of these rows in the batch [b]) -> d(state) / d(angle), [b, N]."""


@dataclass(frozen=True)
class FlowCoordinates:
    """Conversions of the times and states of a process to angles and scaled states z, see the module docstring."""

    process: GaussianProcess

    @property
    def schedule(self) -> NoiseSchedule:
        return self.process.schedule.continuous

    def angle(self, t: Tensor) -> Tensor:
        """Return the angle at t, in [0, pi / 2], float64, with the shape of t."""
        alpha_t, sigma_t = self.schedule.coefficients(t)
        return torch.atan2(sigma_t, alpha_t)

    def time(self, angle: Tensor) -> Tensor:
        """Return the time of the schedule at an angle, float64."""
        return self.schedule.at_log_snr(-2 * angle.tan().log())

    def radius(self, t: Tensor) -> Tensor:
        """Return x_t / z = sqrt(alpha^2 + sigma^2), float64, with the shape of t."""
        alpha_t, sigma_t = self.schedule.coefficients(t)
        return torch.hypot(alpha_t, sigma_t)

    def velocity(self, z: Tensor, x_0: Tensor, angle: Tensor) -> Tensor:
        """Return dz / d(angle) = (cos(angle) z - x_0) / sin(angle).  z, x_0: [B, C, H, W].  angle: [B]."""
        cos, sin = self.process.widen(angle.cos(), z), self.process.widen(angle.sin(), z)
        return (cos * z - x_0) / sin


def dormand_prince(
    slope: Slope, state: Tensor, start: float, end: float, *, rtol: float, atol: float,
    on_round: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Return the state [B, N] at angle `end`, computed by the order 5(4) method of Dormand & Prince (1980).

    Each row of the state is one image. It has its own steps, which depend on this row alone, so that an image does not
    depend on the other images of its batch. A step of a row is accepted if the root mean square of
    error / (atol + rtol * size) over the elements of the row is at most 1, where size is the larger magnitude of an
    element before and after the step.
    slope: function that returns the derivative of the state, see `Slope`.
    state: initial state at angle `start`, [B, N].
    on_round: called with (angles [B], states [B, N]) after all unfinished rows have tried one step.
    Raises FloatingPointError if the steps of a row become too small, for example because its slope is not finite.
    """
    state = state.clone()
    angle = torch.full((len(state),), start, dtype=torch.float64)
    step = torch.full_like(angle, (end - start) / 20)
    first_slope = slope(state, angle, torch.arange(len(state)))
    while len(rows := torch.nonzero((angle - end).abs() > 1e-9).flatten()):
        trial = torch.where(step[rows].abs() < (end - angle[rows]).abs(), step[rows], end - angle[rows])
        if bool((trial.abs() < 1e-10).any()):
            raise FloatingPointError(
                "the probability flow cannot be solved, because its slope is not finite or not smooth; check the "
                "network output for NaN, or increase rtol and atol."
            )
        device_rows = rows.to(state.device)
        slopes = [first_slope[device_rows]]
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            stage = state[device_rows] + _weighted_sum(weights, slopes) * _column(trial, state)
            slopes.append(slope(stage, angle[rows] + node * trial, rows))
        error = _weighted_sum(ERROR, slopes) * _column(trial, state)
        size = torch.maximum(state[device_rows].abs(), stage.abs())
        error_ratio = (error / (atol + rtol * size)).double().square().mean(dim=1).sqrt().cpu()
        error_ratio = torch.where(error_ratio.isnan(), torch.inf, error_ratio)
        accepted = error_ratio <= 1
        device_accepted = accepted.to(state.device)
        state[device_rows[device_accepted]] = stage[device_accepted]
        first_slope[device_rows[device_accepted]] = slopes[-1][device_accepted]
        angle[rows[accepted]] += trial[accepted]
        # The usual step size control: a safety factor of 0.9, the fifth root for the order of the error, and a step
        # that changes at most by a factor of five.
        step[rows] = trial * (0.9 * error_ratio.clamp(min=1e-10) ** -0.2).clamp(0.2, 5)
        if on_round is not None:
            on_round(angle, state)
    return state


def _weighted_sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for weight, value in zip(weights, slopes, strict=True):
        if weight:
            total = total.add(value, alpha=weight)
    return total


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device, like.dtype)[:, None]

"""Averages with any EMA length from saved averages (post-hoc EMA, Karras et al. 2024, section 3.2 and appendix C)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.ema.averages import PowerFunctionDecay

STEPS_AT_ONCE = 8192
"""Number of training steps per QR decomposition, which bounds the memory."""


@dataclass(frozen=True)
class Profile:
    """The weights of the training steps in a power-function average.

    relative_width: EMA length, in (0, 0.288]; see `PowerFunctionDecay`.
    step: last step of the average, counted from 1.
    """

    relative_width: float
    step: int

    @cached_property
    def exponent(self) -> float:
        return PowerFunctionDecay(self.relative_width).exponent

    def weights(self, steps: Tensor) -> Tensor:
        """Return (i^(g+1) - (i-1)^(g+1)) / n^(g+1) for each i in `steps`, and 0 for i > n, float64.

        g: exponent.  n: last step of the average.  steps: float64, any shape.
        """
        power = self.exponent + 1
        # Uses expm1 and log1p, because the direct difference of two nearly equal powers loses most digits.
        weights = -torch.expm1(power * torch.log1p(-1 / steps)) * (steps / self.step) ** power
        return torch.where(steps <= self.step, weights, 0)


@dataclass(frozen=True)
class Combination:
    """Coefficients of a weighted sum of averages.

    coefficients: coefficient of each average; their sum is 1.
    residual: norm of the difference between the resulting and the target profile, divided by the norm of the target
        profile.
    """

    coefficients: tuple[float, ...]
    residual: float


def combination(averages: Sequence[Profile], target: Profile) -> Combination:
    """Return the combination of `averages` that is the least-squares fit to `target` (Karras et al. 2024, alg. 3).

    The paper integrates over continuous time. This function sums over the discrete steps, which is exact for short runs
    too. A QR decomposition avoids the normal equations, which would lose half of the digits.
    Raises ValueError unless the last step of the averages is the step of `target`.
    """
    if max((average.step for average in averages), default=None) != target.step:
        raise ValueError(f"`averages` must end at step {target.step}, got {sorted({a.step for a in averages})[-1:]}.")
    triangle = _qr_triangle([*averages, target])
    columns, goal = triangle[:, :-1], triangle[:, -1]
    # The last coefficient is 1 minus the sum of the others, so that the coefficients sum to 1 exactly.
    others, last = columns[:, :-1] - columns[:, -1:], columns[:, -1]
    solution = torch.linalg.lstsq(others, (goal - last)[:, None], driver="gelsd").solution[:, 0]
    coefficients = torch.cat([solution, 1 - solution.sum(0, keepdim=True)])
    residual = (columns @ coefficients - goal).norm() / goal.norm()
    return Combination(tuple(coefficients.tolist()), float(residual))


def _qr_triangle(profiles: Sequence[Profile]) -> Tensor:
    """Return R of the QR decomposition of the matrix whose columns are the profiles: [profiles, profiles].

    The matrix [steps, profiles] is processed in blocks of steps, because it may not fit into memory.
    """
    triangle = torch.zeros(0, len(profiles), dtype=torch.float64)
    end = max(profile.step for profile in profiles) + 1
    for first in range(1, end, STEPS_AT_ONCE):
        steps = torch.arange(first, min(first + STEPS_AT_ONCE, end), dtype=torch.float64)
        block = torch.stack([profile.weights(steps) for profile in profiles], dim=1)  # [steps, profiles]
        triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
    return triangle

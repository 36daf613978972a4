"""Averages of any length out of saved ones (post-hoc EMA, Karras et al. 2024, section 3.2 and appendix C)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffusion_lab.ema.averages import PowerFunctionDecay

STEPS_AT_ONCE = 8192


@dataclass(frozen=True)
class Profile:
    """The weights that a power-function average gives to the steps of training.

    relative_width: see `PowerFunctionDecay`, in (0, 0.288].  step: the last step averaged, counted from 1.
    """

    relative_width: float
    step: int

    @cached_property
    def exponent(self) -> float:
        return PowerFunctionDecay(self.relative_width).exponent

    def weights(self, steps: Tensor) -> Tensor:
        """(i^(g+1) - (i-1)^(g+1)) / n^(g+1) for each i of `steps`, float64, of any shape; 0 after the last step n."""
        power = self.exponent + 1
        # expm1 and log1p: of two powers that are nearly equal the plain difference keeps few digits.
        weights = -torch.expm1(power * torch.log1p(-1 / steps)) * (steps / self.step) ** power
        return torch.where(steps <= self.step, weights, 0)


@dataclass(frozen=True)
class Combination:
    """coefficients: one for each average that is combined, their sum is 1.

    residual: root of the summed squares of what the profile misses, as a share of the same of the wanted profile.
    """

    coefficients: tuple[float, ...]
    residual: float


def combination(averages: Sequence[Profile], wanted: Profile) -> Combination:
    """The sum of averages whose profile is nearest to the wanted one: least squares, as Karras et al. (2024), alg. 3.

    The paper integrates over continuous time; here the sums over the steps that were really averaged are taken, which
    short runs need, and no squares of profiles are formed, which would cost half of the digits.
    Raises ValueError unless an average ends at the wanted step and none after it.
    """
    if max((average.step for average in averages), default=None) != wanted.step:
        raise ValueError(f"averages must end at step {wanted.step}, got {sorted({a.step for a in averages})[-1:]}.")
    triangle = _triangle([*averages, wanted])
    columns, goal = triangle[:, :-1], triangle[:, -1]
    # The last coefficient is what the others leave of 1, so that what all steps share is kept exactly.
    others, last = columns[:, :-1] - columns[:, -1:], columns[:, -1]
    solution = torch.linalg.lstsq(others, (goal - last)[:, None], driver="gelsd").solution[:, 0]
    coefficients = torch.cat([solution, 1 - solution.sum(0, keepdim=True)])
    residual = (columns @ coefficients - goal).norm() / goal.norm()
    return Combination(tuple(coefficients.tolist()), float(residual))


def _triangle(profiles: Sequence[Profile]) -> Tensor:
    """A small matrix with the inner products of the profiles as columns: R of their QR decomposition, in pieces."""
    triangle = torch.zeros(0, len(profiles), dtype=torch.float64)
    end = max(profile.step for profile in profiles) + 1
    for first in range(1, end, STEPS_AT_ONCE):
        steps = torch.arange(first, min(first + STEPS_AT_ONCE, end), dtype=torch.float64)
        piece = torch.stack([profile.weights(steps) for profile in profiles], dim=1)  # [steps, profiles]
        triangle = torch.linalg.qr(torch.cat([triangle, piece]), mode="r").R
    return triangle

"""Learning-rate schedules: functions from the optimizer step to a factor on the learning rate, without a state."""

import math
from collections.abc import Callable
from dataclasses import dataclass

LRSchedule = Callable[[int], float]
"""Function from the number of an optimizer step, counted from 0, to the factor on its learning rate."""


@dataclass(frozen=True)
class ConstantWithWarmup:
    """Linear warm-up, then constant.  num_warmup_steps: number of warm-up steps; 0 disables the warm-up."""

    num_warmup_steps: int = 0

    def __post_init__(self) -> None:
        _require_warmup(self.num_warmup_steps)

    def __call__(self, step: int) -> float:
        return _warmup(step, self.num_warmup_steps)


@dataclass(frozen=True)
class CosineWithWarmup:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017, without restarts).

    num_warmup_steps: number of warm-up steps; 0 disables the warm-up.
    num_decay_steps: number of steps, including the warm-up, after which the factor reaches 0 and stays 0.
    """

    num_warmup_steps: int
    num_decay_steps: int

    def __post_init__(self) -> None:
        _require_warmup(self.num_warmup_steps)
        if self.num_decay_steps <= self.num_warmup_steps:
            raise ValueError(
                f"num_decay_steps must be greater than num_warmup_steps ({self.num_warmup_steps}), because it includes "
                f"the warm-up, got {self.num_decay_steps}."
            )

    def __call__(self, step: int) -> float:
        progress = (step - self.num_warmup_steps) / (self.num_decay_steps - self.num_warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return _warmup(step, self.num_warmup_steps) * cosine


def _warmup(step: int, num_warmup_steps: int) -> float:
    return min(1.0, (step + 1) / num_warmup_steps) if num_warmup_steps else 1.0


def _require_warmup(num_warmup_steps: int) -> None:
    if num_warmup_steps < 0:
        raise ValueError(f"num_warmup_steps must be at least 0, got {num_warmup_steps}.")

"""Optimisers with the course of their learning rate."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class LearningRateCourse:
    """Linear warm-up, then constant, or falling to 0 along half a cosine.

    num_warmup_steps: 0 is none.  num_decay_steps: the step at which the cosine reaches 0; None keeps the rate constant.
    """

    num_warmup_steps: int = 0
    num_decay_steps: int | None = None

    def __post_init__(self) -> None:
        if self.num_warmup_steps < 0:
            raise ValueError(f"num_warmup_steps must be at least 0, got {self.num_warmup_steps}.")
        if self.num_decay_steps is not None and self.num_decay_steps <= self.num_warmup_steps:
            raise ValueError(
                f"num_decay_steps must be above num_warmup_steps={self.num_warmup_steps}, got {self.num_decay_steps}."
            )

    def __call__(self, step: int) -> float:
        """The factor on the learning rate in optimiser step `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / self.num_warmup_steps) if self.num_warmup_steps else 1.0
        if self.num_decay_steps is None:
            return warmup
        done = (step - self.num_warmup_steps) / (self.num_decay_steps - self.num_warmup_steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Lays moments out in memory as their weights: those of a checkpoint lie as the weights did when it was written.

    Fused kernels walk through all of them as one row of numbers, whatever their strides.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015); weight_decay is decoupled (Loshchilov & Hutter 2019), 0 is plain Adam.

    fused: one pass over all parameters, five times faster than the default loop on a CPU; false for 16-mixed.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    fused: bool = True
    course: LearningRateCourse = LearningRateCourse()

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {list(self.betas)}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}.")

    def __call__(self, parameters: Iterable[Parameter]) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimiser of `parameters`, and the scheduler to advance once a step."""
        betas = (self.betas[0], self.betas[1])
        optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=self.fused
        )
        return optimizer, LambdaLR(optimizer, self.course)

    def settings(self, step: int) -> dict[str, Any]:
        """What the optimiser's parameter group holds before optimiser step `step`, counted from 0."""
        return {
            "lr": self.lr * self.course(step),
            "initial_lr": self.lr,
            "betas": (self.betas[0], self.betas[1]),
            "weight_decay": self.weight_decay,
        }

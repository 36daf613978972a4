"""An optimizer and a learning-rate schedule."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """Steps of a constant size, the sign of a mixture of momentum and gradient (Chen et al. 2023, algorithm 2)."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter -= group["lr"] * momentum.lerp(parameter.grad, 1 - first).sign()
                momentum.lerp_(parameter.grad, 1 - second)
        return loss


@dataclass(frozen=True)
class CosineRestarts:
    """Half a cosine from 1 to 0 in each period of steps (Loshchilov & Hutter 2017, eq. 5)."""

    period: int

    def __call__(self, step: int) -> float:
        return (1 + math.cos(math.pi * (step % self.period) / self.period)) / 2

"""Optimizers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) with decoupled weight decay (AdamW, Loshchilov & Hutter 2019).

    lr: learning rate.  betas: decay rates of the two moments.
    weight_decay: coefficient of the weight decay; 0 gives plain Adam.
    fused: whether to update all parameters in one kernel, which is five times as fast as the default loop on a CPU;
        must be false for trainer.precision=16-mixed.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    fused: bool = True

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {list(self.betas)}.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}.")

    def __call__(self, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
        """Return an optimizer for `parameters`."""
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=self._betas, weight_decay=self.weight_decay, fused=self.fused
        )

    def group_settings(self) -> dict[str, Any]:
        """Return the entries of a parameter group that these settings determine, except the current learning rate."""
        return {"initial_lr": self.lr, "betas": self._betas, "weight_decay": self.weight_decay}

    @property
    def _betas(self) -> tuple[float, float]:
        return self.betas[0], self.betas[1]


def match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give each moment of the optimizer state the strides of its parameter.

    Moments that are loaded from a checkpoint have the strides that their parameter had when the checkpoint was written,
    but fused kernels read the parameter and its moments as flat arrays of one memory format.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

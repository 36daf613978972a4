"""Callbacks that inject NaN or infinity in given steps of a small run."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.training.diffusion_module import DiffusionModule


class PlantedNaN(Callback):
    """Set one pixel of the first batch of the given steps to NaN."""

    def __init__(self, steps: Sequence[int], rank: int = 0) -> None:
        self.steps, self.rank = steps, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: ImageBatch, batch_idx: int) -> None:
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if batch.draws.step in self.steps and trainer.global_rank == self.rank and first:
            batch.x_0[-1, 0, 3, 2] = float("nan")


class PlantedInfinity(Callback):
    """Make the gradient of the last bias of the network infinite in the given steps. The losses stay finite."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps, self.losses = steps, dict[int, float]()

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        def inject(gradient: Tensor) -> Tensor:
            return torch.full_like(gradient, float("inf")) if trainer.global_step in self.steps else gradient

        *_, bias = pl_module.network.parameters()
        bias.register_hook(inject)  # type: ignore[no-untyped-call]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.losses[trainer.global_step - 1] = float(trainer.callback_metrics["loss"])


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two dictionaries of tensors are bitwise equal."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def learned(trainer: Trainer) -> dict[str, Tensor]:
    """Return all tensors that training changes: the state of the module and of its optimizer."""
    state: dict[str, Tensor] = {**trainer.lightning_module.state_dict()}
    for k, moments in trainer.optimizers[0].state_dict()["state"].items():
        state |= {f"optimizer.{k}.{name}": value for name, value in moments.items()}
    return state

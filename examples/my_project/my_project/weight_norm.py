"""A callback that logs the norm of the weights."""

import torch
from lightning import Callback, Trainer

from diffusion_lab.training import TrainedModule


class LogWeightNorm(Callback):
    """Log the Euclidean norm of all weights as weight_norm every n steps."""

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: TrainedModule, *args: object) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            norms = torch.stack([parameter.detach().norm() for parameter in pl_module.network.parameters()])
            pl_module.log_step(weight_norm=norms.norm())

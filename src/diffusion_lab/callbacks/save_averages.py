"""Averages kept during training, so that their length can be chosen after it."""

from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from diffusion_lab.callbacks.every import Every
from diffusion_lab.ema.averages import PowerFunctionDecay
from diffusion_lab.ema.snapshots import save_averages
from diffusion_lab.training.diffusion_module import DiffusionModule


class SaveAverages(Callback):
    """Every n steps and at the end: the power-function averages, as `step_0001000.pt`.

    The weights are the same in every process: the first writes them, the others do not wait for it.
    """

    def __init__(self, folder: str, *, every_n_steps: int) -> None:
        self.folder, self.every = Path(folder), Every(every_n_steps)

    def on_fit_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        if not any(isinstance(decay, PowerFunctionDecay) for decay in pl_module.ema.decays.values()):
            raise ValueError("callbacks.save_averages needs an average with PowerFunctionDecay, as in ema=power.")

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.every.start_at(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *args: Any) -> None:
        if self.every.due(trainer.global_step):
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        if self.every.left_over(trainer.global_step):
            self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, module: DiffusionModule) -> None:
        if trainer.is_global_zero:
            save_averages(module.ema, self.folder)

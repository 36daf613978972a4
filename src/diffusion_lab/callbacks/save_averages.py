"""A callback that saves snapshots of the weight averages, for post-hoc EMA (Karras et al. 2024, section 3.2).

Averages with other EMA lengths are reconstructed from the snapshots after training.
"""

from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from diffusion_lab.callbacks.every import Every
from diffusion_lab.ema.averages import PowerFunctionDecay
from diffusion_lab.ema.snapshots import save_averages
from diffusion_lab.training.diffusion_module import DiffusionModule


class SaveAverages(Callback):
    """Callback that saves the power-function averages every n steps and at the end, in files such as `step_0001000.pt`.

    Only rank 0 writes, since all ranks have the same weights; the other ranks do not wait for rank 0.
    """

    def __init__(self, folder: str, *, every_n_steps: int) -> None:
        self.folder, self.every = Path(folder), Every(every_n_steps)

    def on_fit_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        decays = pl_module.ema.decays.values()
        if not any(isinstance(decay, PowerFunctionDecay) for decay in decays):
            names = ", ".join(type(decay).__name__ for decay in decays)
            raise ValueError(
                f"ema.decays must contain a PowerFunctionDecay for callbacks.save_averages, got {names}; try ema=power."
            )

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.every.start_at(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *args: Any) -> None:
        if self.every.due(trainer.global_step):
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        if self.every.due_at_end(trainer.global_step):
            self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, module: DiffusionModule) -> None:
        if trainer.is_global_zero:
            save_averages(module.ema, self.folder)

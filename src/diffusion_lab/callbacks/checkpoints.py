"""Checkpoints that are whole or not there."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from diffusion_lab.callbacks.every import Every


class SaveLast(Checkpoint):
    """Writes `last.ckpt` every n steps, at the end, and when training is interrupted or fails."""

    def __init__(self, folder: str, *, every_n_steps: int) -> None:
        self.folder, self.every = Path(folder), Every(every_n_steps)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.every.due(trainer.global_step):
            save_checkpoint(trainer, self.folder / "last.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every.left_over(trainer.global_step):
            save_checkpoint(trainer, self.folder / "last.ckpt")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # With several processes the others may be gone, and saving would wait for them for ever.
        if trainer.world_size == 1 and self.every.left_over(trainer.global_step):
            save_checkpoint(trainer, self.folder / "last.ckpt")


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Writes the trainer's whole state; a process killed meanwhile leaves the file before it untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    trainer.save_checkpoint(partial)
    if trainer.is_global_zero:
        partial.replace(path)

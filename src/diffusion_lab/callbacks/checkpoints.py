"""When checkpoints are written, and how Lightning writes and reads them."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.every import Every
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.training.diffusion_module import DiffusionModule


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to files: every checkpoint is written whole or not at all, and checked before it is read."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        checkpoint_files.write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return checkpoint_files.read(Path(path), map_location=map_location)


class SaveLast(Checkpoint):
    """Writes `last.ckpt` every n steps, at the end, and when training is stopped or fails; keeps the one before.

    A step counts as done when the next begins: by then its numbers are logged and its pictures drawn, so that a resumed
    run has nothing to repeat and nothing is missing.
    """

    def __init__(self, folder: str, *, every_n_steps: int, keep_every_n_steps: int | None = None) -> None:
        """keep_every_n_steps: these checkpoints also stay, as step_NUMBER.ckpt; None keeps none."""
        if keep_every_n_steps is not None and keep_every_n_steps < 1:
            raise ValueError(f"keep_every_n_steps must be at least 1, or null, got {keep_every_n_steps}.")
        self.folder, self.every = Path(folder), Every(every_n_steps)
        self.keep_every_n_steps, self._saved = keep_every_n_steps, 0
        self._begun: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.every.start_at(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: DiffusionModule, *args: Any) -> None:
        # While steps are refused, the two last checkpoints are those to go back to.
        step = trainer.global_step
        due = self.every.due(step) or (self._stays(step) and step != self._saved)  # once, however many batches it has
        if due and not pl_module.guard.in_streak:
            self._save(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        self._begun = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.on_train_end()  # its turn comes after the callbacks', but the last numbers before the checkpoint
        if self.every.left_over(trainer.global_step):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Of several processes the others may be gone, and saving would wait for them for ever; all of them stop
        # together on a signal.
        together = trainer.world_size == 1 or isinstance(exception, StoppedBySignal)
        if together and self.every.left_over(trainer.global_step) and self._whole(trainer):
            self._save(trainer)

    def _whole(self, trainer: Trainer) -> bool:
        """Whether network, average, optimiser and schedule stand after the same step, and not in the middle of one."""
        scheduled = all(config.scheduler.last_epoch == trainer.global_step for config in trainer.lr_scheduler_configs)
        return scheduled and self._begun != trainer.global_step

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            checkpoint_files.keep_previous(self.folder)
        trainer.save_checkpoint(self.folder / checkpoint_files.LAST)
        self._saved = trainer.global_step
        if trainer.is_global_zero and self._stays(trainer.global_step):
            checkpoint_files.keep(self.folder / checkpoint_files.LAST, f"step_{trainer.global_step:07}.ckpt")

    def _stays(self, step: int) -> bool:
        return self.keep_every_n_steps is not None and step > 0 and step % self.keep_every_n_steps == 0

"""A callback that saves checkpoints, and a Lightning plugin that writes and reads checkpoint files."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from diffusion_lab import checkpoint_files
from diffusion_lab.callbacks.every import Every
from diffusion_lab.callbacks.periodic_action import run_after_training
from diffusion_lab.distributed import signals
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.files.atomic import write_error
from diffusion_lab.training import lora
from diffusion_lab.training.diffusion_module import DiffusionModule


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoint IO that writes each checkpoint atomically and verifies its checksums before loading."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        checkpoint_files.write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return checkpoint_files.read(Path(path), map_location=map_location)


class SaveLast(Checkpoint):
    """Callback that saves `last.ckpt` every n steps, at the end, and when training is stopped or fails.

    The preceding checkpoint remains as `previous.ckpt`. The checkpoint after a step is saved when the next step begins:
    by then the metrics of the step are logged and the images of the step are generated, so a resumed run neither
    repeats nor misses metrics or images.
    """

    def __init__(self, folder: str, *, every_n_steps: int, keep_every_n_steps: int | None = None) -> None:
        """folder: checkpoint folder.  every_n_steps: number of steps between two saves.

        keep_every_n_steps: number of steps between two checkpoints that are kept permanently as step_NUMBER.ckpt; None
            keeps none.
        """
        if keep_every_n_steps is not None and keep_every_n_steps < 1:
            raise ValueError(f"keep_every_n_steps must be at least 1, or null, got {keep_every_n_steps}.")
        self.folder, self.every = Path(folder), Every(every_n_steps)
        self.keep_every_n_steps = keep_every_n_steps
        self.last_saved = 0
        """Step of the newest checkpoint."""
        self._optimizer_step_begun: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.every.start_at(trainer.global_step)
        self.last_saved = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: DiffusionModule, *args: Any) -> None:
        step = trainer.global_step
        # The comparison with last_saved avoids saving a step again for each of its accumulated batches.
        due = self.every.due(step) or (self._is_permanent(step) and step != self.last_saved)
        # A streak of skipped steps may end with a restore, so no checkpoint is saved during a streak.
        if due and not pl_module.guard.in_streak:
            self._save(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        self._optimizer_step_begun = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning calls the module's hook after the hooks of the callbacks. The call here logs the last metrics before
        # the checkpoint is saved.
        pl_module.on_train_end()
        if self.every.due_at_end(trainer.global_step):
            self._save(trainer)
        run_after_training(trainer, pl_module)  # Lightning calls the hooks of Checkpoint callbacks last

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # After an error on one rank, the other ranks may have ended, and saving would wait for them forever. A signal,
        # however, stops all ranks at the same step, unless it is a second Ctrl-C. If a file could not be written, such
        # as the metrics of this step, the resumed run must repeat the step.
        stops_together = isinstance(exception, StoppedBySignal) and exception.step is not None
        all_ranks_here = (trainer.world_size == 1 and write_error(exception) is None) or stops_together
        if all_ranks_here and self.every.due_at_end(trainer.global_step) and self._is_consistent(trainer):
            self._save(trainer)

    def _is_consistent(self, trainer: Trainer) -> bool:
        """Return whether network, averages, optimizer and learning-rate schedule are at the end of the same step."""
        scheduled = all(config.scheduler.last_epoch == trainer.global_step for config in trainer.lr_scheduler_configs)
        return scheduled and self._optimizer_step_begun != trainer.global_step

    def _save(self, trainer: Trainer) -> None:
        with signals.held():
            for logger in trainer.loggers:
                if hasattr(logger, "sync"):  # before the checkpoint, since a resumed run does not repeat its steps
                    logger.sync()
            if trainer.is_global_zero:
                checkpoint_files.keep_previous(self.folder)
            trainer.save_checkpoint(self.folder / checkpoint_files.LAST)
            if trainer.is_global_zero and (module := trainer.lightning_module).adapters is not None:
                module.adapters.save(module.sampled, self.folder / lora.FOLDER)
        self.last_saved = trainer.global_step
        self.every.start_at(trainer.global_step)  # an error after the last save must not save the same step again
        if trainer.is_global_zero and self._is_permanent(trainer.global_step):
            checkpoint_files.keep(self.folder / checkpoint_files.LAST, f"step_{trainer.global_step:07}.ckpt")

    def _is_permanent(self, step: int) -> bool:
        return self.keep_every_n_steps is not None and step > 0 and step % self.keep_every_n_steps == 0

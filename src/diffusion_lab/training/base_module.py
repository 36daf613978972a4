"""Base class of trained modules: optimizer step, gradient clipping, non-finite guard, logging and resuming."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from diffusion_lab import __version__
from diffusion_lab.checkpoint_files import weights_mismatch
from diffusion_lab.contracts import require_instance
from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.fingerprints import MISSING, VERSION, describe, differences, version_of
from diffusion_lab.process import GaussianProcess
from diffusion_lab.training import loop_progress, lora, optimizer_states
from diffusion_lab.training.loading import WeightsOnlyModule
from diffusion_lab.training.lr_schedules import (
    ConstantWithWarmup,
    LRSchedule,
    TorchLRSchedule,
    build_scheduler,
    require_lr_schedule,
)
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard
from diffusion_lab.training.optimizer_states import OPTIMIZER_KEY
from diffusion_lab.training.optimizers import OptimizerFactory, match_memory_format
from diffusion_lab.training.plain_batches import PlainBatch, PlainBatches, with_float_images
from diffusion_lab.training.step_checks import as_scalar, require_gradient

logger = logging.getLogger(__name__)

VERSION_KEY = "diffusion_lab"
"""Key of a checkpoint under which the version of the package that wrote the checkpoint is stored."""

MEANING_KEY = "weights_meaning"
"""Key of a checkpoint under which `TrainedModule.weights_meaning` is stored. Version 0.3 did not store it."""

PLAIN_BATCHES_KEY = "plain_batches"
"""Key of the checkpoints of runs whose data loader yields plain batches and ends after each epoch."""


class TrainedModule(WeightsOnlyModule):
    """A network in training. Subclasses define the loss and what follows an optimizer step.

    network: network to train.  optimizer: its optimizer.  lr_schedule: learning-rate schedule; None is constant.
    guard: handling of losses and gradients that are not finite; None uses the defaults of `NonFiniteGuard`.
    seed: seed of the random numbers for plain batches, see `PlainBatches`.
    """

    process: GaussianProcess

    adapters: lora.LoRA | None = None
    """Adapters that the network has; None if it has none."""

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: OptimizerFactory,
        lr_schedule: LRSchedule | TorchLRSchedule | None,
        guard: NonFiniteGuard | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.network, self.optimizer, self.guard = network, optimizer, guard or NonFiniteGuard()
        self.lr_schedule = lr_schedule or ConstantWithWarmup()
        require_lr_schedule(self.lr_schedule)
        self._plain_batches = PlainBatches(seed)
        self._losses: list[Tensor] = []
        self._trained_parameters = list(network.parameters())  # traversing the modules takes longer than some steps
        self._gradient_norm: Tensor | None = None
        self._step_metrics: dict[str, Tensor] = {}
        self._last_logged_step = 0
        self.require_parts(optimizer=OptimizerFactory, guard=NonFiniteGuard)

    def require_parts(self, **bases: type) -> None:
        """Raise ValueError unless the attributes with these names are instances of these classes."""
        for name, base in bases.items():
            require_instance(getattr(self, name), base, name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: [C, H, W]."""
        raise NotImplementedError

    @property
    def sampled(self) -> nn.Module:
        """The network that samples: the first average, or the trained network if there are no averages."""
        network: nn.Module = getattr(getattr(self, "ema", None), "network", self.network)
        return network

    @property
    def num_classes(self) -> int:
        """Number of classes of the labels that training needs; 0 if it needs none."""
        raise NotImplementedError

    def weights_meaning(self) -> dict[str, Any]:
        """Return the settings that define what the output of the network means, for fingerprints.

        Weights that were trained with other settings would silently give wrong images.
        """
        return {"process": describe(self.process), "conventions": getattr(self.network, "conventions", {})}

    def image_batch(self, batch: ImageBatch | PlainBatch, batch_idx: int) -> ImageBatch:
        """Convert a batch of any data loader to the images, labels and random numbers of a training step.

        batch: see `PlainBatch`; of an ImageBatch, uint8 images are converted.
        batch_idx: index of the batch in its epoch; without a trainer, the number of the step.
        Raises ValueError if the batch does not fit the network.
        """
        trainer, shape, num_classes = self._trainer, self.image_shape, self.num_classes
        if isinstance(batch, ImageBatch):
            return with_float_images(batch, shape)
        if trainer is None:
            return self._plain_batches.convert(batch, shape=shape, num_classes=num_classes, step=batch_idx)
        step, num_parts = trainer.global_step, trainer.accumulate_grad_batches
        part = batch_idx % num_parts
        return self._plain_batches.convert(
            batch, shape=shape, num_classes=num_classes, step=step, part=part, num_parts=num_parts
        )

    def mean_loss(self, weight: Tensor, loss: Tensor, step: int) -> Tensor:
        """Return the weighted mean loss of a batch, checked by the guard, and store it for logging.

        weight: loss weights, [B].  loss: loss of each image, [B].  step: number of the step.  Shape of the mean: [].
        """
        mean = (weight.to(loss.device, non_blocking=loss.is_cuda) * loss).mean()
        mean = self.guard.check_loss(require_gradient(mean, self.network), loss, step)
        self._losses.append(mean.detach())
        return mean

    def after_step(self) -> None:
        """Finish an optimizer step. This method is called once after each optimizer step."""

    def log_step(self, **metrics: Tensor | float) -> None:
        """Record metrics of the current step, one number each, for loggers, progress display and summary."""
        # LightningModule.log takes a third of a millisecond per metric in every step, even if the step is not logged.
        for name, value in metrics.items():
            self._step_metrics[name] = as_scalar(name, value)
        self.trainer.callback_metrics.update(self._step_metrics)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights.  Raises RuntimeError, which names what does not fit, for the weights of another module."""
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            raise RuntimeError(weights_mismatch(self.state_dict(), state_dict) or str(error)) from error

    def on_fit_start(self) -> None:
        # Lightning warns about modules in evaluation mode. The averages and the autoencoder always are in this mode.
        in_eval_mode = [name for name, module in self.named_modules() if not module.training]
        never_trained = sum(not name.startswith("network.") and name != "network" for name in in_eval_mode)
        warnings.filterwarnings("ignore", message=rf"Found {never_trained} module\(s\) in eval mode")

    def on_train_start(self) -> None:
        self._last_logged_step = self.trainer.global_step
        for optimizer in self.trainer.optimizers:
            match_memory_format(optimizer)

    def write_metrics(self, *, is_last: bool = False) -> None:
        """Write the metrics of the current step to the loggers if they are due and not written yet.

        is_last: whether training ends after this step, whose metrics are due in any case.
        """
        interval, step = self.trainer.log_every_n_steps, self.trainer.global_step
        is_due = is_last or step == self.trainer.max_steps or (interval and step % interval == 0)
        if interval and is_due and step != self._last_logged_step:
            self._write_to_loggers(step)

    def on_train_batch_end(self, *args: Any) -> None:
        self.write_metrics()

    def on_train_end(self) -> None:
        self.write_metrics(is_last=True)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_states.check_loaded_states(self.optimizer(self.network))
        scheduler = {"scheduler": build_scheduler(self.lr_schedule, optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # The only hook that runs once per optimizer step, however many batches are accumulated.
        super().optimizer_step(*args, **kwargs)
        # Lightning keeps the gradients until after the next forward pass, which needs their memory.
        for parameter in self._trained_parameters:
            parameter.grad = None
        self.after_step()
        self._log_optimizer_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[VERSION_KEY] = __version__
        checkpoint[OPTIMIZER_KEY] = self._optimizer_settings()
        checkpoint[MEANING_KEY] = self.weights_meaning()
        if self.adapters is not None:
            checkpoint[lora.KEY] = self.adapters.scale
        if self._plain_batches.has_converted:
            checkpoint[PLAIN_BATCHES_KEY] = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._require_same_meaning(checkpoint)
        if not lora.has_adapters(self.network):
            checkpoint |= lora.merged_checkpoint(checkpoint, "the checkpoint")
        if self._trainer is None:  # load_from_checkpoint loads the weights only
            return
        version = str(checkpoint.get(VERSION_KEY, "before 0.3.0"))
        if version_of(version if VERSION_KEY in checkpoint else "0.2") != VERSION:
            _warn_about_version(version)
        # Lightning counts batches, so that it could resume in the middle of a step. Here only the step determines the
        # progress, because a run may resume with another number of accumulated batches. Loaders of plain batches have
        # epochs.
        step, fit_loop = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]
        if PLAIN_BATCHES_KEY in checkpoint:
            loop_progress.finish_epoch(fit_loop)
        elif step:
            loop_progress.set_step(step, self.trainer.accumulate_grad_batches, fit_loop)
        checkpoint["callbacks"].pop("Timer", None)  # trainer.max_time limits one job, not the run
        is_fork = not checkpoint.get(MEANING_KEY)  # the copy that a fork starts from has no record of the meaning
        frozen_others = is_fork and not optimizer_states.has_size_of(checkpoint, self.network)
        if checkpoint.get(OPTIMIZER_KEY) != self._optimizer_settings() or frozen_others:
            optimizer_states.change_settings(checkpoint, self.optimizer, self.lr_schedule, self.network, step)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning does not clip under autocast with a fused optimizer: with a gradient scaler (float16), the optimizer
        # unscales its gradients inside the step. Without a scaler, clipping before the step is correct.
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            # The scaler itself decides which steps to skip, and the guard does not count these steps.
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [parameter for parameter in self._trained_parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
        if gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val or float("inf"), norm)
        elif gradient_clip_val:
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        self._gradient_norm = norm
        self.guard.check_gradient(optimizer, norm)

    def _require_same_meaning(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError if the weights of a checkpoint were trained with another meaning than this module has."""
        saved, own = checkpoint.get(MEANING_KEY, {}), self.weights_meaning()
        found = {key: values for key, values in differences([saved, own]).items() if values[0] != MISSING}
        if found:  # a version that adds a setting to a class reads checkpoints without this setting
            names = [key.removesuffix(".name") for key in found]
            before, now = (
                " and ".join(f"{name}={values[k]}" for name, values in zip(names, found.values(), strict=True))
                for k in (0, 1)
            )
            raise ValueError(
                f"the weights in the checkpoint were trained with {before}, but this module has {now}; build the "
                "module with the arguments with which it was trained."
            )

    def _optimizer_settings(self) -> dict[str, str]:
        return {"optimizer": self.optimizer.name, "settings": f"{self.optimizer.settings}, {self.lr_schedule}"}

    def _log_optimizer_step(self) -> None:
        """Log the loss, averaged over all ranks and accumulated batches, the gradient norm and the learning rate."""
        mean = self._losses[0] if len(self._losses) == 1 else torch.stack(self._losses).mean()
        self._losses.clear()
        metrics = {"loss": Ranks.current().all_reduce_mean(mean)}
        if self._gradient_norm is not None:
            metrics["gradient_norm"] = self._gradient_norm
        self.log_step(**metrics, learning_rate=float(self.trainer.optimizers[0].param_groups[0]["lr"]))

    def _write_to_loggers(self, step: int) -> None:
        """Pass the recorded metrics to all loggers. This waits for the device.  step: number of completed steps."""
        self._last_logged_step = step
        metrics = {name: float(value) for name, value in self._step_metrics.items()}
        self.trainer.progress_bar_metrics["loss"] = metrics["loss"]  # for the progress bars of Lightning
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=step)
            logger.save()


@rank_zero_only
def _warn_about_version(version: str) -> None:
    logger.info(
        "the checkpoint was written by version %s and is resumed by version %s: the noise of the remaining steps may "
        "differ from that of an uninterrupted run.",
        version,
        __version__,
    )

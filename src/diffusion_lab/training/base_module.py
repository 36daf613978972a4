"""How a step moves a network, whatever it is trained for: optimiser, clipping, guard, what is logged and resumed."""

import sys
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffusion_lab import __version__
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.fingerprints import VERSION, version_of
from diffusion_lab.training.lr_schedules import ConstantWithWarmup, LRSchedule
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard
from diffusion_lab.training.optimizers import Adam, match_memory_format

CODE = "diffusion_lab"
"""Where a checkpoint holds the version of the code that wrote it."""


class TrainedModule(LightningModule):
    """A network in training. Who inherits says what its loss is, and what follows a step."""

    def __init__(
        self, network: nn.Module, *, optimizer: Adam, lr_schedule: LRSchedule | None, guard: NonFiniteGuard | None
    ) -> None:
        super().__init__()
        self.network, self.optimizer, self.guard = network, optimizer, guard or NonFiniteGuard()
        self.lr_schedule = lr_schedule or ConstantWithWarmup()
        self._losses: list[Tensor] = []
        self._trained = list(network.parameters())  # walking through all modules costs more than some steps
        self._gradient_norm: Tensor | None = None
        self._told: dict[str, Tensor] = {}
        self._last_logged = 0

    def mean_loss(self, weight: Tensor, loss: Tensor, step: int) -> Tensor:
        """The loss of a batch, looked at by the guard and kept for the log.  weight, loss: [B].  Returns []."""
        mean = self.guard.checked((weight.to(loss.device, non_blocking=loss.is_cuda) * loss).mean(), loss, step)
        self._losses.append(mean.detach())
        return mean

    def after_step(self) -> None:
        """Called once an optimiser step, after it."""

    def log_step(self, **numbers: Tensor | float) -> None:
        """Numbers of the step that is under way, for the log, the display and the summary."""
        # Lightning's own way, self.log, costs a third of a millisecond for each number of each step, due or not.
        for name, value in numbers.items():
            self._told[name] = value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)
        self.trainer.callback_metrics.update(self._told)

    def on_train_start(self) -> None:
        self._last_logged = self.trainer.global_step
        for optimizer in self.trainer.optimizers:
            match_memory_format(optimizer)

    def on_train_batch_end(self, *args: Any) -> None:
        every, step = self.trainer.log_every_n_steps, self.trainer.global_step
        if every and step != self._last_logged and step % every == 0:
            self._log(step)

    def on_train_end(self) -> None:
        # A run shorter than that would leave no numbers at all.
        if self.trainer.log_every_n_steps and self.trainer.global_step != self._last_logged:
            self._log(self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self._trained)
        # A plain function: LambdaLR would restore the fields of a callable object from the checkpoint, and a fork would
        # keep the schedule of the run that it came from.
        scheduler = LambdaLR(optimizer, lambda step: self.lr_schedule(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # The one hook that runs once per optimiser step, however many batches were accumulated for it.
        super().optimizer_step(*args, **kwargs)
        # Lightning would keep the gradients through the next forward pass, which needs their memory.
        for parameter in self._trained:
            parameter.grad = None
        self.after_step()
        self._tell_of_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CODE] = __version__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        begun = str(checkpoint.get(CODE, "before 0.3.0"))
        if version_of(begun if CODE in checkpoint else "0.2") != VERSION and self._trainer is not None:
            _warn_of_other_code(begun)
        # Lightning counts batches and would go on in the middle of a step, at the old rates; here the step says all. So
        # a run may go on with another accumulation, and a fork with other rates.
        if step := checkpoint["global_step"]:
            _stand_after(step, self.trainer.accumulate_grad_batches, checkpoint["loops"]["fit_loop"])
        checkpoint["callbacks"].pop("Timer", None)  # trainer.max_time is the time of one job
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group |= self.optimizer.group_settings() | {"lr": self.optimizer.lr * self.lr_schedule(step)}
        for state in checkpoint["lr_schedulers"]:
            state["base_lrs"] = [self.optimizer.lr for _ in state["base_lrs"]]
            state["lr_lambdas"] = [None for _ in state["lr_lambdas"]]  # versions up to 0.3 stored the schedule

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning refuses to clip under autocast with a fused optimiser, because one that also scales its gradients
        # (float16) unscales them inside the step. Without a scaler nothing stands in the way.
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            # The scaler refuses steps by a rule of its own, which the guard neither sees nor counts.
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [parameter for parameter in self._trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
        if gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val or float("inf"), norm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self._gradient_norm = norm
        self.guard.admit(optimizer, norm)

    def _tell_of_step(self) -> None:
        """Tells what the step came to over all processes and accumulated batches."""
        mean = self._losses[0] if len(self._losses) == 1 else torch.stack(self._losses).mean()
        self._losses.clear()
        numbers = {"loss": Ranks.current().all_reduce_mean(mean)}
        if self._gradient_norm is not None:
            numbers["gradient_norm"] = self._gradient_norm
        self.log_step(**numbers, learning_rate=float(self.trainer.optimizers[0].param_groups[0]["lr"]))

    def _log(self, step: int) -> None:
        """Hands what was told to the loggers, under the number of steps done. Waits for the device."""
        self._last_logged = step
        numbers = {name: float(value) for name, value in self._told.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, step=step)
            logger.save()


@rank_zero_only
def _warn_of_other_code(begun: str) -> None:
    print(
        f"note: the checkpoint was written by version {begun}, this is {__version__}: from here on the run may draw "
        "other noise than it would have.",
        file=sys.stderr,
    )


def _stand_after(step: int, accumulate: int, fit_loop: dict[str, Any]) -> None:
    """Sets Lightning's loops to the moment at which the last batch of `step` ends, in the one epoch that there is."""
    num_batches = step * accumulate
    batches = {"ready": num_batches, "started": num_batches, "processed": num_batches, "completed": num_batches - 1}
    epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    fit_loop["epoch_loop.batch_progress"].update(total=dict(batches), current=dict(batches), is_last_batch=False)
    fit_loop["epoch_progress"].update(total=dict(epoch), current=dict(epoch))
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1

"""The training flow, image to loss, and the sampling flow, noise to image, of one network and its average."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.denoiser import Denoiser, DenoiserLike
from diffusion_lab.ema import EMA, RAW
from diffusion_lab.fingerprints import describe
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.objectives import Objective
from diffusion_lab.optimizers import Adam
from diffusion_lab.process import GaussianProcess, Prediction, TimeDistribution
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import ClassifierFreeGuidance, OnStep, Sampler
from diffusion_lab.step_guard import StepGuard


class DiffusionModule(LightningModule):
    """A denoising network in training: `network` is trained, `ema.network` is sampled."""

    def __init__(
        self,
        network: nn.Module,
        process: GaussianProcess,
        *,
        prediction: Prediction,
        objective: Objective,
        times: TimeDistribution,
        ema: Callable[[nn.Module], EMA],
        optimizer: Adam,
        sampler: Sampler,
        guard: StepGuard | None = None,
    ) -> None:
        super().__init__()
        self.network, self.process, self.prediction = network, process, prediction
        self.objective, self.times, self.optimizer, self.sampler = objective, times, optimizer, sampler
        channels, out_channels = int(network.in_channels), int(network.out_channels)  # type: ignore[arg-type]
        prediction.require(process.schedule)
        objective.require(process.schedule, channels, out_channels)
        self.ema, self.guard = ema(network), guard or StepGuard()
        self._losses: list[Tensor] = []

    @property
    def labels(self) -> Labels:
        """The classes that the network knows."""
        labels: Labels = self.network.labels  # type: ignore[assignment]
        return labels

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        x_0, draws = batch.x_0, batch.draws  # [B, C, H, W], all randomness of this step
        label = self.labels.drop(batch.label, draws.dropped_labels(self.labels.dropout))
        t, weight = self.times.sample(draws)  # [B], [B]
        noise = draws.noise(like=x_0)
        x_t = self.process.q_sample(x_0, t, noise)
        x_in, time = self.prediction.preconditioning(t, self.process).inputs(x_t)
        with draws.dropout(x_0.device):
            output = self.network(x_in, time, Condition(label, batch.augmentation))
        loss = self.objective(output, x_0, x_t, noise, t, self.process)  # [B]
        self.times.update(draws, t, loss)
        mean = self.guard.checked((weight.to(loss.device) * loss).mean(), loss, draws.step)
        self._losses.append(mean.detach())
        return mean

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.optimizer(self.network.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # The one hook that runs once per optimiser step, however many batches were accumulated for it.
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.network)
        self.times.finish_step(self.guard.applied)
        self._log_step()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning counts batches and would go on in the middle of a step, at the old rates; here the step says all. So
        # a run may go on with another accumulation, and a fork with other rates.
        if step := checkpoint["global_step"]:
            _stand_after(step, self.trainer.accumulate_grad_batches, checkpoint["loops"]["fit_loop"])
        checkpoint["callbacks"].pop("Timer", None)  # trainer.max_time is the time of one job
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group.update(self.optimizer.settings(step))
        for state in checkpoint["lr_schedulers"]:
            state["base_lrs"] = [self.optimizer.lr for _ in state["base_lrs"]]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning refuses to clip under autocast with a fused optimiser, because one that also scales its gradients
        # (float16) unscales them inside the step. Without a scaler nothing stands in the way.
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            # The scaler refuses steps by a rule of its own, which the guard neither sees nor counts.
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
        if gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val or float("inf"), norm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.log("gradient_norm", norm)
        self.guard.admit(optimizer, norm)

    def _log_step(self) -> None:
        """Logs what the step came to over all processes and accumulated batches, under the number of steps done."""
        loss = self.trainer.strategy.reduce(torch.stack(self._losses).mean(), reduce_op="mean")
        self._losses.clear()
        rate, step = self.trainer.optimizers[0].param_groups[0]["lr"], self.global_step + 1
        exact = {"learning_rate": rate, "step": step}
        self.log_dict({"loss": loss} | {key: torch.tensor(float(exact[key]), dtype=torch.float64) for key in exact})

    def sampled_network(self, weights: str | None = None) -> nn.Module:
        """The average of a name, or `raw`: the trained network as it is now. None is the first average.

        Raises ValueError where no average has the name.
        """
        if weights == RAW:
            return copy.deepcopy(self.network).requires_grad_(False).eval()  # the trained one may be dropping out
        if weights is not None and weights not in self.ema.networks:
            raise ValueError(f"weights must be {' or '.join([*self.ema.networks, RAW])}, got {weights}.")
        return self.ema.network if weights is None else self.ema.networks[weights]

    def weights_protocol(self, weights: str | None = None) -> dict[str, Any]:
        """What the protocol of a number says of the weights of `sampled_network`."""
        if weights == RAW:
            return {"kind": RAW}
        name = weights or next(iter(self.ema.networks))
        return {"kind": "ema", "name": name, "decay": describe(self.ema.decays[name])}

    def denoiser(self, guidance_scale: float = 1.0, weights: str | None = None) -> DenoiserLike:
        """An averaged network as an estimator of clean images; guidance_scale 1 is none.

        weights: see `sampled_network`.  Raises ValueError where guidance is asked of a network without a null label.
        """
        denoiser = Denoiser(self.sampled_network(weights), self.process, self.prediction)
        if guidance_scale == 1:
            return denoiser
        return ClassifierFreeGuidance(denoiser, self.labels.null, guidance_scale)

    def sample(
        self,
        seeds: Sequence[int],
        label: Tensor | None = None,
        *,
        sampler: Sampler | None = None,
        guidance_scale: float = 1.0,
        weights: str | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Images of the averaged network, one for each seed: [B, C, H, W] in [-1, 1].

        label: int64 [B]; None is seed k -> class k modulo their number. Unused by an unconditional network.
        sampler: the module's own if None.  weights: see `sampled_network`.  on_step: see `samplers.OnStep`.
        """
        if label is None:
            label = torch.tensor([seed % max(self.labels.num_classes, 1) for seed in seeds])
        condition = Condition(label.to(self.device) if self.labels.num_classes else None)
        shape = (self.network.in_channels, self.network.resolution, self.network.resolution)
        noise = ImageNoise(seeds, shape, self.device)  # type: ignore[arg-type]
        with self._precision():
            denoiser = self.denoiser(guidance_scale, weights)
            return (sampler or self.sampler).sample(denoiser, noise, condition, on_step)

    def _precision(self) -> AbstractContextManager[Any]:
        # Sampling runs in the precision of training; outside a trainer, in that of the weights.
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()


def _stand_after(step: int, accumulate: int, fit_loop: dict[str, Any]) -> None:
    """Sets Lightning's loops to the moment at which the last batch of `step` ends, in the one epoch that there is."""
    num_batches = step * accumulate
    batches = {"ready": num_batches, "started": num_batches, "processed": num_batches, "completed": num_batches - 1}
    epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    fit_loop["epoch_loop.batch_progress"].update(total=dict(batches), current=dict(batches), is_last_batch=False)
    fit_loop["epoch_progress"].update(total=dict(epoch), current=dict(epoch))
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1

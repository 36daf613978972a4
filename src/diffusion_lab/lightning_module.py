"""The training flow, image to loss, and the sampling flow, noise to image, of one network and its average."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.denoiser import Denoiser, DenoiserLike
from diffusion_lab.ema import EMA
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.objectives import Objective
from diffusion_lab.optimizers import Adam
from diffusion_lab.process import GaussianProcess, Prediction, TimeDistribution
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import ClassifierFreeGuidance, OnStep, Sampler


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
    ) -> None:
        super().__init__()
        self.network, self.process, self.prediction = network, process, prediction
        self.objective, self.times, self.optimizer, self.sampler = objective, times, optimizer, sampler
        channels, out_channels = int(network.in_channels), int(network.out_channels)  # type: ignore[arg-type]
        prediction.require(process.schedule)
        objective.require(process.schedule, channels, out_channels)
        self.ema = ema(network)

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
        output = self.network(x_in, time, Condition(label, batch.augmentation))
        loss = self.objective(output, x_0, x_t, noise, t, self.process)  # [B]
        self.times.update(draws, t, loss)
        mean = (weight.to(loss.device) * loss).mean()
        self.log("loss", mean)
        return mean

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.optimizer(self.network.parameters())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # The one hook that runs once per optimiser step, however many batches were accumulated for it.
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.network)
        self.times.finish_step()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Lightning refuses to clip under autocast with a fused optimiser, because one that also scales its gradients
        # (float16) unscales them inside the step. Without a scaler nothing stands in the way.
        if gradient_clip_algorithm in (None, "norm") and getattr(self.trainer.precision_plugin, "scaler", None) is None:
            limit = gradient_clip_val or float("inf")
            self.log("gradient_norm", nn.utils.clip_grad_norm_(self.network.parameters(), limit))
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def denoiser(self, guidance_scale: float = 1.0) -> DenoiserLike:
        """The averaged network as an estimator of clean images; guidance_scale 1 is none.

        Raises ValueError where guidance is asked of a network without a null label.
        """
        denoiser = Denoiser(self.ema.network, self.process, self.prediction)
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
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Images of the averaged network, one for each seed: [B, C, H, W] in [-1, 1].

        label: int64 [B]; None is seed k -> class k modulo their number. Unused by an unconditional network.
        sampler: the module's own if None.  on_step: see `samplers.OnStep`.
        """
        if label is None:
            label = torch.tensor([seed % max(self.labels.num_classes, 1) for seed in seeds])
        condition = Condition(label.to(self.device) if self.labels.num_classes else None)
        shape = (self.network.in_channels, self.network.resolution, self.network.resolution)
        noise = ImageNoise(seeds, shape, self.device)  # type: ignore[arg-type]
        with self._precision():
            return (sampler or self.sampler).sample(self.denoiser(guidance_scale), noise, condition, on_step)

    def _precision(self) -> AbstractContextManager[Any]:
        # Sampling runs in the precision of training; outside a trainer, in that of the weights.
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()

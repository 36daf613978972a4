"""The training flow, image to loss, and the sampling flow, noise to image, of one network and its average."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.ema.averages import EMA, RAW
from diffusion_lab.fingerprints import describe
from diffusion_lab.guidance import Guidance
from diffusion_lab.latents import Pixels, Space
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.objectives import Objective
from diffusion_lab.process import GaussianProcess, Prediction, TimeDistribution
from diffusion_lab.randomness import Draws, ImageNoise, Purpose
from diffusion_lab.samplers import OnStep, Sampler
from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.lr_schedules import LRSchedule
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard
from diffusion_lab.training.optimizers import Adam


class DiffusionModule(TrainedModule):
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
        lr_schedule: LRSchedule | None = None,
        guard: NonFiniteGuard | None = None,
        space: Space | None = None,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr_schedule=lr_schedule, guard=guard)
        self.space = space or Pixels()
        self.process, self.prediction = process, prediction
        self.objective, self.times, self.sampler = objective, times, sampler
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
        draws = batch.draws  # all randomness of this step
        x_0 = encoded(batch.x_0, self.space, draws)  # [B, C, H, W]
        label = self.labels.drop(batch.label, draws.dropped_labels(self.labels.dropout))
        condition = replace(batch.condition, label=label)
        t, weight = self.times.sample(draws)  # [B], [B]
        noise = draws.noise(like=x_0)
        x_t = self.process.q_sample(x_0, t, noise)
        x_in, time = self.prediction.preconditioning(t, self.process).inputs(x_t)
        with draws.dropout(x_0.device):
            output = self.network(x_in, time, condition)
        loss = self.objective(output, x_0, x_t, noise, t, self.process)  # [B]
        self.times.update(draws, t, loss)
        return self.mean_loss(weight, loss, draws.step)

    def after_step(self) -> None:
        self.ema.update(self.network)
        self.times.finish_step(self.guard.applied)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image that is drawn: [C, H, W]."""
        return self.space.image_shape(int(self.network.in_channels), int(self.network.resolution))  # type: ignore[arg-type]

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

    def denoiser(self, weights: str | None = None) -> Denoiser:
        """An averaged network as an estimator of clean images.  weights: see `sampled_network`."""
        return Denoiser(self.sampled_network(weights), self.process, self.prediction)

    def sample(
        self,
        seeds: Sequence[int],
        condition: Condition | None = None,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        weights: str | None = None,
        stage: int = 0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Images of the averaged network, one for each seed: [B, C, H, W] in [-1, 1].

        condition: on any device; without a label in it, seed k asks for class k modulo their number.
        sampler: the module's own if None.  weights: see `sampled_network`.  stage: of a cascade, see `ImageNoise`.
        on_step: see `samplers.OnStep`.  Raises ValueError where guidance or condition do not suit the network.
        """
        condition, guidance = condition or Condition(), guidance or Guidance()
        if condition.label is None and (num_classes := guidance.num_classes(self.labels)):
            condition = replace(condition, label=torch.tensor([seed % num_classes for seed in seeds]))
        shape = (self.network.in_channels, self.network.resolution, self.network.resolution)
        noise = ImageNoise(seeds, shape, self.device, stage=stage)  # type: ignore[arg-type]
        with self._precision():
            denoiser = guidance.to(self.device)(self.denoiser(weights), self.labels)
            x_0 = (sampler or self.sampler).sample(denoiser, noise, condition.to(self.device), on_step)
            return self.space.decode(x_0)

    def _precision(self) -> AbstractContextManager[Any]:
        # Sampling runs in the precision of training; outside a trainer, in that of the weights.
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()


def encoded(images: Tensor, space: Space, draws: Draws) -> Tensor:
    """What a step noises: the images, or a draw of their latents."""
    shape = space.noise_shape(images)
    return space.encode(images, None if shape is None else draws.noise(images, Purpose.LATENT, shape))

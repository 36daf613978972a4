"""LightningModule of a diffusion model: the training flow, image to loss, and the sampling flow, noise to image."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.ema.averages import EMA, RAW
from diffusion_lab.fingerprints import describe
from diffusion_lab.guidance import Guidance
from diffusion_lab.latents import Pixels, Space
from diffusion_lab.networks import Condition, Labels, Network
from diffusion_lab.objectives import Objective
from diffusion_lab.process import GaussianProcess, Prediction, TimeDistribution
from diffusion_lab.randomness import Draws, ImageNoise, Purpose
from diffusion_lab.samplers import OnStep, Sampler
from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.lr_schedules import LRSchedule, TorchLRSchedule
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard
from diffusion_lab.training.optimizers import OptimizerFactory


class DiffusionModule(TrainedModule):
    """A denoising network in training: `network` is trained, and `ema.network` generates images by default."""

    network: Network

    def __init__(
        self,
        network: Network,
        process: GaussianProcess,
        *,
        prediction: Prediction,
        objective: Objective,
        times: TimeDistribution,
        ema: Callable[[nn.Module], EMA],
        optimizer: OptimizerFactory,
        sampler: Sampler,
        lr_schedule: LRSchedule | TorchLRSchedule | None = None,
        guard: NonFiniteGuard | None = None,
        space: Space | None = None,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr_schedule=lr_schedule, guard=guard)
        self.space = space or Pixels()
        self.process, self.prediction = process, prediction
        self.objective, self.times, self.sampler = objective, times, sampler
        prediction.require(process.schedule)
        objective.require(process.schedule, network.in_channels, network.out_channels)
        self.ema = ema(network)

    @property
    def labels(self) -> Labels:
        """The classes that the network is conditioned on."""
        return self.network.labels

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        draws = batch.draws  # all randomness of this step
        x_0 = self._encode(batch.x_0, draws)  # [B, C, H, W]
        condition = self._drop_labels(batch.condition, draws)
        t, weight = self.times.sample(draws)  # [B], [B]
        noise = draws.noise(like=x_0)
        x_t = self.process.q_sample(x_0, t, noise)
        output = self._network_output(x_t, t, condition, draws)
        loss = self.objective(output, x_0, x_t, noise, t, self.process)  # [B]
        self.times.update(draws, t, loss)
        return self.mean_loss(weight, loss, draws.step)

    def after_step(self) -> None:
        self.ema.update(self.network)
        self.times.finish_step(self.guard.applied)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one generated image: [C, H, W]."""
        return self.space.image_shape(self.network.in_channels, self.network.resolution)

    def sampled_network(self, weights: str | None = None) -> Network:
        """Return the average named `weights`, or, for "raw", a copy of the network that is being trained.

        weights: name of the average; None selects the first average.  Raises ValueError if no average has this name.
        """
        if weights == RAW:
            return copy.deepcopy(self.network).requires_grad_(False).eval()  # the original may apply dropout
        if weights is not None and weights not in self.ema.networks:
            raise ValueError(f"`weights` must be {' or '.join([*self.ema.networks, RAW])}, got {weights}.")
        return cast(Network, self.ema.network if weights is None else self.ema.networks[weights])

    def weights_protocol(self, weights: str | None = None) -> dict[str, Any]:
        """Return the fingerprint entry of the weights that `sampled_network` returns."""
        if weights == RAW:
            return {"kind": RAW}
        name = weights or next(iter(self.ema.networks))
        return {"kind": "ema", "name": name, "decay": describe(self.ema.decays[name])}

    def denoiser(self, weights: str | None = None) -> Denoiser:
        """Return a denoiser with the weights that `sampled_network` returns."""
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
        """Generate one image for each seed: [B, C, H, W] in [-1, 1].

        condition: condition of the images, on any device; without a label, seed k has class k modulo the number of
            classes.
        sampler: sampler to use; None selects the sampler of the module.
        weights: name of the weights, see `sampled_network`.
        stage: index of the network in a cascade, see `ImageNoise`.
        on_step: callback after each step, see `samplers.OnStep`.
        Raises ValueError if guidance, condition or weights do not fit the network.
        """
        condition, guidance = condition or Condition(), guidance or Guidance()
        if condition.label is None and (num_classes := guidance.num_classes(self.labels)):
            condition = replace(condition, label=torch.tensor([seed % num_classes for seed in seeds]))
        shape = (self.network.in_channels, self.network.resolution, self.network.resolution)
        noise = ImageNoise(seeds, shape, self.device, stage=stage)
        with self._precision():
            denoiser = guidance.to(self.device)(self.denoiser(weights), self.labels)
            x_0 = (sampler or self.sampler).sample(denoiser, noise, condition.to(self.device), on_step)
            return self.space.decode(x_0)

    def _precision(self) -> AbstractContextManager[Any]:
        # Sampling uses the precision of training. Without a trainer, it uses the precision of the weights.
        return self.trainer.precision_plugin.forward_context() if self._trainer is not None else nullcontext()

    def _encode(self, images: Tensor, draws: Draws) -> Tensor:
        """Return images [B, C, H, W] in the space of the diffusion process: pixels, or latents drawn from `draws`."""
        shape = self.space.noise_shape(images)
        return self.space.encode(images, None if shape is None else draws.noise(images, Purpose.LATENT, shape))

    def _drop_labels(self, condition: Condition, draws: Draws) -> Condition:
        """Replace random labels by the null label, for classifier-free guidance."""
        return replace(condition, label=self.labels.drop(condition.label, draws.dropped_labels(self.labels.dropout)))

    def _network_output(self, x_t: Tensor, t: Tensor, condition: Condition, draws: Draws) -> Tensor:
        """Run the network on preconditioned inputs, with dropout drawn from `draws`."""
        network_input, network_time = self.prediction.preconditioning(t, self.process).inputs(x_t)
        with draws.dropout(x_t.device):
            return self.network(network_input, network_time, condition)  # type: ignore[no-any-return]

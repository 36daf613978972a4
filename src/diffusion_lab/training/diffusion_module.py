"""LightningModule of a diffusion model: the training flow, image to loss, and the sampling flow, noise to image."""

import copy
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Never, cast

import torch
from torch import Tensor, nn

from diffusion_lab import contracts
from diffusion_lab.data.augmentation import Augmentation
from diffusion_lab.data.classes import LabelChoice, as_label, labels_of
from diffusion_lab.data.image_datamodule import ImageBatch
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.ema.averages import EMA, RAW, Decay, RampedDecay
from diffusion_lab.fingerprints import describe
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.latents import Pixels, Space
from diffusion_lab.networks import Condition, Labels, Network, require_network, require_output
from diffusion_lab.objectives import Denoising, Objective
from diffusion_lab.process import (
    Epsilon,
    GaussianProcess,
    NoiseSchedule,
    Prediction,
    TableSchedule,
    TimeDistribution,
    Uniform,
)
from diffusion_lab.randomness import Draws, ImageNoise, Purpose
from diffusion_lab.samplers import DDIM, Clipping, OnStep, Sampler, TimeGrid
from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.ema_argument import as_ema, describe_decays, note_other_decays
from diffusion_lab.training.lr_schedules import LRSchedule, TorchLRSchedule
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard
from diffusion_lab.training.optimizers import OptimizerFactory
from diffusion_lab.training.plain_batches import PlainBatch
from diffusion_lab.training.sample_arguments import SamplerChoice, as_guidance, as_sampler, as_seeds, refuse_settings

CLASS_NAMES_KEY = "class_names"
"""Key of a checkpoint under which the names of the classes are stored, if the module has them."""


DECAYS_KEY = "ema_decays"
"""Key of a checkpoint under which the decays of the averages are stored. Version 0.3 did not store them."""


class DiffusionModule(TrainedModule):
    """A denoising network in training: `network` is trained, and `ema.network` generates images by default.

    network: network to train, see `Network` for the attributes that it must have.
    process: forward process, which adds noise to the images, or its noise schedule.
    prediction: quantity that the network predicts; by default the noise (Ho et al. 2020).
    objective: loss; by default the squared error of the prediction.
    times: distribution of the training times; by default uniform over the times of the schedule.
    ema: averages of the weights, as an `EMA` of this network, a function that builds it, or the `Decay` of a single
        average; by default one average with `RampedDecay`.
    optimizer: optimizer; by default Adam with a learning rate of 2e-4 (Ho et al. 2020, appendix B).
    sampler: sampler of `sample`, or its class or name; by default DDIM with 50 steps, or all steps of a schedule with
        fewer.
    lr_schedule: learning-rate schedule; by default constant.
    guard: handling of losses and gradients that are not finite.
    space: space of the diffusion process; by default pixels.
    seed: seed of the random numbers of training. Batches from `ImageDataModule` contain random numbers, and then the
        seed has no effect.

    Raises ValueError if a part does not implement its base class, or does not fit the schedule or the network.

    The module can be trained by a `lightning.Trainer` with any data loader. Its batches are images [B, C, H, W], uint8
    or float in [-1, 1], (images, labels) with labels int64 [B], or a dict with the keys `image` and `label`:

    There is no validation loss: a validation loader is ignored. `load_from_checkpoint(path, network=..., process=...)`
    loads the weights, with the same `prediction` and the same names of averages as in training.

    >>> from diffusion_lab import CosineSchedule, DiffusionModule, GaussianProcess, UNet
    >>> network = UNet(1, 1, resolution=8, channels=32, channel_multipliers=(1,), attention_resolutions=())
    >>> module = DiffusionModule(network, GaussianProcess(CosineSchedule()))
    >>> loss = module.training_step(torch.full((64, 1, 8, 8), -1.0), 0)  # loss of an output of 0
    >>> print(f"{loss:.1f}", list(module.sample(range(2)).shape))
    1.0 [2, 1, 8, 8]
    """

    network: Network

    class_names: Sequence[str] = ()
    """Names of the classes, for `sample`. Checkpoints contain them, and `load_module` also finds those of a run."""

    trained_classes: Sequence[int] = ()
    """Numbers of the classes of the training images; empty if these are all classes, or if they are not known."""

    augmentation: Augmentation | None = None
    """Augmentation of the training images, on which the network is conditioned, for `conventions`."""

    def __init__(
        self,
        network: Network,
        process: GaussianProcess | NoiseSchedule,
        *,
        prediction: Prediction | None = None,
        objective: Objective | None = None,
        times: TimeDistribution | None = None,
        ema: Callable[[nn.Module], EMA] | EMA | Decay | None = None,
        optimizer: OptimizerFactory | None = None,
        sampler: SamplerChoice | None = None,
        lr_schedule: LRSchedule | TorchLRSchedule | None = None,
        guard: NonFiniteGuard | None = None,
        space: Space | None = None,
        seed: int = 0,
    ) -> None:
        require_network(network, Network)
        optimizer = optimizer or OptimizerFactory(torch.optim.Adam, lr=2e-4)
        process = GaussianProcess.of(process)
        super().__init__(network, optimizer=optimizer, lr_schedule=lr_schedule, guard=guard, seed=seed)
        self.space, self.process, self.prediction = space or Pixels(), process, prediction or Epsilon()
        self.objective = objective or Denoising(self.prediction)
        self.times = times or Uniform(process.schedule)
        self.require_parts(prediction=Prediction, objective=Objective, times=TimeDistribution)
        self._require_prediction(getattr(self.objective, "prediction", self.prediction))  # other objectives have none
        self.prediction.require(process.schedule)
        self.objective.require(process.schedule, network.in_channels, network.out_channels)
        self.sampler = as_sampler(sampler, _default_sampler(process), process)
        self.ema = as_ema(ema or RampedDecay(), network)

    @property
    def labels(self) -> Labels:
        """The classes that the network is conditioned on."""
        return self.network.labels

    @property
    def num_classes(self) -> int:
        return self.labels.num_classes

    def training_step(self, batch: ImageBatch | PlainBatch, batch_idx: int) -> Tensor:
        batch = self.image_batch(batch, batch_idx)
        draws = batch.draws  # all randomness of this step
        x_0 = self._encode(batch.x_0, draws)  # [B, C, H, W]
        condition = self._drop_labels(self.space.encode_condition(batch.condition, self.network), draws)
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.class_names:
            checkpoint[CLASS_NAMES_KEY] = list(self.class_names)
        checkpoint[DECAYS_KEY] = describe_decays(self.ema)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.class_names = self.class_names or checkpoint.get(CLASS_NAMES_KEY, ())
        note_other_decays(checkpoint.get(DECAYS_KEY), self.ema)

    def weights_meaning(self) -> dict[str, Any]:
        return {"prediction": describe(self.prediction, omit=("clip_mean",)), **super().weights_meaning()}

    def conventions(self, unused: Collection[str] = ()) -> dict[str, Any]:
        """Return the settings that later versions added, for fingerprints; see `contracts.conventions`.

        unused: names of settings that are left out, because they have no effect on the value that is measured.
        """
        parts = contracts.conventions(self.prediction) | contracts.conventions(self.augmentation)
        parts |= getattr(self.network, "conventions", {})
        return {name: value for name, value in parts.items() if name not in unused}

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
        seeds: int | Sequence[int],
        condition: Condition | Tensor | None = None,
        *,
        label: LabelChoice | None = None,
        guidance: Guidance | Strength | float | None = None,
        guidance_scale: float | None = None,
        sampler: SamplerChoice | None = None,
        num_steps: int | None = None,
        clipping: Clipping | str | None = None,
        time_grid: TimeGrid | str | None = None,
        weights: str | None = None,
        stage: int = 0,
        on_step: OnStep | None = None,
        **unknown: Never,
    ) -> Tensor:
        """Generate one image for each seed: [B, C, H, W], in [-1, 1] if the estimates of x_0 are clipped.

        Without clipping (`NoClipping`), values may be somewhat outside; `to_uint8` clips them.

        seeds: seeds of the images; a number n stands for the seeds 0 to n - 1.
        condition: condition of the images or their labels, int64 [B], on any device; without a label, the images have
            the trained classes in turn: seed k has class k modulo the number of classes if all classes were trained.
            Condition images are pixels, also for a network for latents.
        label: classes of the images by number, by name if `class_names` are known, or "random", see `LabelChoice`.
        guidance: guidance scale of classifier-free guidance, or any other guidance.
        guidance_scale: guidance scale of classifier-free guidance; may be given instead of `guidance`.
        sampler: sampler, or its class or name, such as "ddim"; None selects the sampler of the module.
        num_steps, clipping, time_grid: number of its steps, its clipping and its time grid, or the names of the latter,
            such as "static" and "karras"; None keeps those of the sampler. A sampler that is given by class or name
            has the clipping and time grid of the module's sampler.
        weights: name of the weights, see `sampled_network`.
        stage: index of the network in a cascade, see `ImageNoise`.
        on_step: callback after each step, see `samplers.OnStep`.
        Raises ValueError if an argument does not fit the network, and TypeError for settings of a sampler (eta).
        """
        refuse_settings(unknown, self.sample.__annotations__)
        seeds, guidance = as_seeds(seeds), as_guidance(guidance, guidance_scale)
        changes = {"num_steps": num_steps, "clipping": clipping, "time_grid": time_grid}
        sampler = as_sampler(sampler, self.sampler, self.process, **changes)
        condition = Condition.of(condition)
        num_classes = guidance.num_classes(self.labels)
        trained = guidance.trained_classes(self.labels, self.trained_classes)
        chosen = as_label(label, num_classes, self.class_names, trained=trained)
        if chosen is not None or (condition.label is None and num_classes):
            condition = replace(condition, label=labels_of(seeds, chosen, num_classes, trained))
        shape = (self.network.in_channels, self.network.resolution, self.network.resolution)
        noise = ImageNoise(seeds, shape, self.device, stage=stage)
        network = self.sampled_network(weights)
        denoiser = Denoiser(network, self.process, self.prediction)
        with self._precision(network):
            guided = guidance.to(self.device)(denoiser, self.labels)
            condition = self.space.encode_condition(condition.to(self.device), network)
            return self.space.decode(sampler.sample(guided, noise, condition, on_step))

    def _require_prediction(self, trained: Prediction) -> None:
        """Raise ValueError unless the objective trains the prediction that sampling expects."""
        if describe(trained) != describe(self.prediction):
            raise ValueError(
                f"`objective` must have the prediction of the module ({self.prediction}), got an objective with "
                f"{trained}."
            )

    def _precision(self, sampled: Network) -> AbstractContextManager[Any]:
        # Sampling uses the precision of training. It uses the precision of the weights without a trainer, and for the
        # float32 average of a network that is trained in half precision (bf16-true).
        if self._trainer is None or _dtype_of(sampled) != _dtype_of(self.network):
            return nullcontext()
        context: AbstractContextManager[Any] = self.trainer.precision_plugin.forward_context()
        return context

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
            output = self.network(network_input, network_time, condition)
        require_output(self.network, output, x_t)
        return output  # type: ignore[no-any-return]


def _dtype_of(network: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first parameter; None for a network without parameters."""
    return next((parameter.dtype for parameter in network.parameters()), None)


def _default_sampler(process: GaussianProcess) -> Sampler:
    schedule = process.schedule
    return DDIM(process, num_steps=min(50, schedule.num_timesteps) if isinstance(schedule, TableSchedule) else 50)

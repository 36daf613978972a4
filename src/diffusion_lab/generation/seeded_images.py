"""Seeds -> images as bytes: image by image the same, on any number of processes and after any interruption."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lab import __version__
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.fingerprints import describe, digest
from diffusion_lab.generation.low_resolution_images import LowResolutionImages
from diffusion_lab.guidance import Guidance
from diffusion_lab.latents import Latents, Pixels
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import to_uint8
from diffusion_lab.randomness import Purpose, stream
from diffusion_lab.samplers import OnStep, Sampler
from diffusion_lab.training.diffusion_module import DiffusionModule

RANDOM = "random"


class SeededImages:
    """The images that a network draws, known by their seeds.

    An image is a function of (network, sampler, its seed). Processors round in another way for another number of
    images, so images are always drawn in the same batches: those whose seeds are k * batch_size to
    (k + 1) * batch_size - 1, whole, however few of them are asked for.
    """

    def __init__(
        self,
        module: DiffusionModule,
        *,
        sampler: Sampler | None = None,
        label: int | str | None = None,
        guidance: Guidance | None = None,
        weights: str | None = None,
        batch_size: int = 100,
        folder: Path | None = None,
        small: LowResolutionImages | None = None,
    ) -> None:
        """sampler: the module's own if None.  label: of all images; None is seed modulo their number, "random" drawn.

        weights: see `DiffusionModule.sampled_network`.  folder: where finished batches are kept for an interrupted job.
        small: the low-resolution images that a network for super-resolution enlarges.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.module, self.sampler, self.batch_size, self.folder = module, sampler or module.sampler, batch_size, folder
        self.label, self.guidance, self.weights = label, guidance or Guidance(), weights
        self.max_pass_size = batch_size
        """Images that the network sees at once: fewer than batch_size where that did not fit into memory."""
        self.small = small
        self.guidance(module.denoiser(weights), module.labels)
        _require_small(module, small)
        self.labels([0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: [C, H, W]."""
        return self.module.image_shape

    def batches(self, seeds: range) -> list[range]:
        """The seeds cut at the borders of batches.  seeds: neighbours."""
        first, last = seeds.start // self.batch_size, -(-seeds.stop // self.batch_size)
        whole = (range(k * self.batch_size, (k + 1) * self.batch_size) for k in range(first, last))
        return [range(max(part.start, seeds.start), min(part.stop, seeds.stop)) for part in whole]

    def draw(self, seeds: range, on_step: OnStep | None = None) -> Tensor:
        """Images as grey levels, uint8 [B, C, H, W], on the module's device.  seeds: of one batch, or a part of it.

        on_step: see `samplers.OnStep`; told of the whole batch, which then is drawn again in any case.
        Raises ValueError for images that are not finite.
        """
        whole = self._whole(seeds)
        kept = self._kept(whole) if on_step is None else None
        pixels = self._drawn(whole, on_step) if kept is None else kept
        if kept is None:
            self._keep(whole, pixels)
        return pixels[seeds.start - whole.start : seeds.stop - whole.start].to(self.module.device)

    def is_cached(self, seeds: range) -> bool:
        """Whether the batch of these seeds was finished by an earlier job."""
        return self._kept(self._whole(seeds)) is not None

    def protocol(self) -> dict[str, Any]:
        """How the images are made, for the fingerprint of a number about them."""
        classes = self.guidance.num_classes(self.module.labels)
        label = f"seed modulo {classes}" if self.label is None else self.label
        return {
            "sampler": describe(self.sampler, omit=("process",)) | {"num_steps": len(self.sampler.times)},
            "schedule": describe(self.module.process.schedule),
            "weights": self.module.weights_protocol(self.weights),
            **self._guidance_protocol(),
            "label": label if classes else None,
            "batch_size": self.max_pass_size,
            "quantization": "rounded to 256 levels",
            **({} if self.small is None else {"low_resolution": self.small.protocol()}),
            **({} if self.module.space == Pixels() else {"space": self._space_protocol()}),
        }

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        """int64 [B]; None for a network without classes."""
        classes = self.guidance.num_classes(self.module.labels)
        if not classes:
            if self.label is None:
                return None
            raise ValueError(
                f"label must be left out for a network that was trained without classes, got {self.label}."
            )
        if self.label is None:
            known = None if self.small is None else self.small.labels(seeds)
            return torch.tensor([seed % classes for seed in seeds]) if known is None else known
        if self.label == RANDOM:
            return torch.tensor([int(stream(seed, Purpose.SAMPLED_LABEL).integers(classes)) for seed in seeds])
        if isinstance(self.label, bool) or not isinstance(self.label, int) or not 0 <= self.label < classes:
            raise ValueError(f"label must be in 0..{classes - 1}, or random, got {self.label}.")
        return torch.full((len(seeds),), self.label)

    def condition(self, x_0: Tensor, label: Tensor | None) -> Condition:
        """What the network is told of images that are known: x_0 [B, C, H, W] in [-1, 1], label int64 [B]."""
        if self.small is None:
            return Condition(label)
        small = self.small.low_resolution.of(x_0)
        return self.small.low_resolution.condition(label, small, torch.zeros(len(x_0)), torch.zeros_like(small))

    def identity(self, precision: str) -> str:
        """Another one for other weights or another way of drawing: the sha256 of both."""
        weights = weights_sha256(self.module.sampled_network(self.weights))
        return digest([self.protocol(), precision, __version__, weights])

    def _space_protocol(self) -> dict[str, Any]:
        space = self.module.space
        assert isinstance(space, Latents)
        return {"scale": space.scale, "shift": space.shift, "weights_sha256": weights_sha256(space.autoencoder)}

    def _guidance_protocol(self) -> dict[str, Any]:
        """The scale, and what else there is of guidance."""
        guidance, strength = self.guidance, self.guidance.strength
        protocol: dict[str, Any] = {"guidance_scale": float(strength.guidance_scale)}
        if strength.guidance_scale != 1 and (strength.interval or strength.rescale):
            protocol["guidance"] = describe(strength, omit=("guidance_scale",))
        if guidance.guide is not None:
            protocol["guide"] = {"weights_sha256": weights_sha256(guidance.guide.network)}
        if guidance.classifier is not None:
            protocol["classifier"] = {"weights_sha256": weights_sha256(guidance.classifier.network)}
            protocol["classifier_scale"] = float(guidance.classifier_scale)
        return protocol

    def _whole(self, seeds: range) -> range:
        """The batch that these seeds belong to."""
        start = seeds.start // self.batch_size * self.batch_size
        return range(start, start + self.batch_size)

    def _drawn(self, seeds: range, on_step: OnStep | None) -> Tensor:
        label = self.labels(seeds)
        told = Condition(label) if self.small is None else self.small.condition(seeds, label, self.module.device)
        while True:
            try:
                rows = _parts(range(len(seeds)), self.max_pass_size)
                told_of = [(seeds[part.start : part.stop], told.select(torch.tensor(part))) for part in rows]
                return torch.cat([self._pass(part, condition, on_step) for part, condition in told_of])
            except torch.OutOfMemoryError:
                if self.max_pass_size == 1:
                    raise
            # Outside of the handler: the error holds on to what did not fit. Noise belongs to seeds: it is the same.
            torch.cuda.empty_cache()
            self.max_pass_size = -(-self.max_pass_size // 2)

    def _pass(self, seeds: range, told: Condition, on_step: OnStep | None) -> Tensor:
        images = self.module.sample(
            seeds,
            told,
            sampler=self.sampler,
            guidance=self.guidance,
            weights=self.weights,
            stage=0 if self.small is None else self.small.stage,
            on_step=on_step,
        )
        return to_uint8(images).cpu()

    def _kept(self, seeds: range) -> Tensor | None:
        """A finished batch of an interrupted job, if it is whole."""
        if self.folder is None:
            return None
        try:
            pixels = np.load(self._file(seeds), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return (
            torch.from_numpy(pixels) if pixels.shape == (len(seeds), *self.shape) and pixels.dtype == np.uint8 else None
        )

    def _keep(self, seeds: range, pixels: Tensor) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(seeds)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        with partial.open("wb") as opened:
            np.save(opened, pixels.numpy())
        partial.replace(file)  # a kill leaves whole files alone

    def _file(self, seeds: range) -> Path:
        assert self.folder is not None
        return self.folder / f"seeds_{seeds.start:09}.npy"


def _require_small(module: DiffusionModule, small: LowResolutionImages | None) -> None:
    network = module.network
    channels = int(getattr(network, "low_resolution_channels", 0))
    if channels and small is None:
        raise ValueError("cascade must begin with a run that is told no low-resolution image, got one that is.")
    if small is not None and channels != small.channels:
        wanted = f"of {channels} channels" if channels else "none"
        raise ValueError(f"low_resolution images must be {wanted} for this network, got {small.channels} channels.")
    if small is not None:
        small.require(module.labels.num_classes)


def weights_sha256(network: nn.Module) -> str:
    """Of all that a network holds."""
    content = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        content.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _parts(seeds: range, size: int) -> list[range]:
    return [seeds[k : k + size] for k in range(0, len(seeds), size)]


def draw_with_frames(
    images: SeededImages, batches: Sequence[range], num_frames: int, advance: Callable[[int], None]
) -> tuple[Tensor, list[Tensor]]:
    """The images of all processes and how they came to be; every process must ask.

    batches: those of this process.  num_frames: spread over the sampler's steps, the last among them.
    advance: told of every step of every batch.  Returns uint8 [N, C, H, W], and num_frames or fewer of that shape.
    """
    num_steps = len(images.sampler.times)
    shown = sorted({round(frame) for frame in np.linspace(1, num_steps, min(num_frames, num_steps))})  # none for 0
    drawn, frames = [torch.zeros(0, *images.shape, dtype=torch.uint8)], list[Tensor]()

    def draw(seeds: range) -> None:
        own: dict[int, list[Tensor]] = {done: [] for done in shown}

        def on_step(done: int, x_t: Tensor, x_0: Tensor) -> None:
            advance(1)
            if done in own:
                own[done].append(to_uint8(images.module.space.decode(x_t)).cpu())

        drawn.append(images.draw(seeds, on_step).cpu())
        if num_frames:
            first = seeds.start % images.batch_size
            # The last ones: a pass that did not fit into memory has left some of its own before.
            whole = torch.stack([torch.cat(own[done])[-images.batch_size :] for done in shown], dim=1)
            frames.append(whole[first : first + len(seeds)])

    ranks = Ranks.current()
    with ranks.raise_together():
        for seeds in batches:
            draw(seeds)
    nothing = torch.zeros(0, len(shown), *images.shape, dtype=torch.uint8)
    together = ranks.all_gather(torch.cat([nothing, *frames])) if num_frames else nothing  # [N, frames, C, H, W]
    return ranks.all_gather(torch.cat(drawn)), list(together.unbind(1))

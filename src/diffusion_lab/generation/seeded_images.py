"""Generation of uint8 images from seeds. The images do not depend on the number of ranks or on interruptions."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lab import __version__
from diffusion_lab.atomic_files import atomic_file
from diffusion_lab.data.classes import LabelChoice, as_label, labels_of
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.fingerprints import describe, digest
from diffusion_lab.generation.condition_images import ConditionImages
from diffusion_lab.generation.indexed_images import IndexedImages
from diffusion_lab.guidance import Guidance
from diffusion_lab.latents import Latents, Pixels
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import to_uint8
from diffusion_lab.samplers import OnStep, Sampler
from diffusion_lab.training.diffusion_module import DiffusionModule


class SeededImages(IndexedImages):
    """The images that a network generates, indexed by their seeds.

    An image is a function of the network, the sampler and the seed. Since rounding depends on the batch size, images
    are always generated in the same full batches, with the seeds k * batch_size to (k + 1) * batch_size - 1, even if
    only some of the images are requested.
    """

    action = "sampling"

    def __init__(
        self,
        module: DiffusionModule,
        *,
        sampler: Sampler | None = None,
        label: LabelChoice | None = None,
        guidance: Guidance | None = None,
        weights: str | None = None,
        batch_size: int = 100,
        folder: Path | None = None,
        condition_images: ConditionImages | None = None,
    ) -> None:
        """Raise ValueError if an argument does not fit the network, or if batch_size is below 1.

        sampler: sampler that generates the images; None selects the sampler of the module.
        label: see `LabelChoice`. If the label is None, each image has the class of its condition image; if there are
            no condition images, or if they have no classes, the images have the trained classes in turn: the class of
            seed k is k modulo the number of classes if the network was trained on all of them.
        weights: name of the weights, see `DiffusionModule.sampled_network`.  batch_size: number of images per batch.
        folder: folder in which finished batches are cached, so that an interrupted job can be resumed.
        condition_images: source of the condition images, such as low-resolution images for a super-resolution network.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.module, self.sampler, self.batch_size, self.folder = module, sampler or module.sampler, batch_size, folder
        self.guidance, self.weights = guidance or Guidance(), weights
        self.micro_batch_size = batch_size
        """Number of images in a forward pass: smaller than batch_size if a full batch did not fit into memory."""
        self.condition_images = condition_images
        self.guidance(module.denoiser(weights), module.labels)
        _require_condition_images(module, condition_images)
        self.trained = self.guidance.trained_classes(module.labels, module.trained_classes)
        """The classes that the network was trained on; empty if it was trained on all of them."""
        self.label = as_label(label, self.num_classes, module.class_names, default="null", trained=self.trained)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: [C, H, W]."""
        return self.module.image_shape

    @property
    def device(self) -> torch.device:
        return torch.device(self.module.device)

    @property
    def num_classes(self) -> int:
        return self.guidance.num_classes(self.module.labels)

    def pixels(self, indices: range) -> Tensor:
        return self.generate(indices)

    def generate(self, seeds: range, on_step: OnStep | None = None) -> Tensor:
        """Generate images, uint8 [B, C, H, W], on the device of the module.

        seeds: consecutive seeds in one full batch.
        on_step: callback after each sampler step, see `samplers.OnStep`. The callback receives the full batch. With a
            callback, the batch is generated even if it is cached.
        Raises ValueError if the images are not finite.
        """
        full_batch = self._full_batch(seeds)
        cached = self._load_cached(full_batch) if on_step is None else None
        pixels = self._generate_batch(full_batch, on_step) if cached is None else cached
        if cached is None:
            self._save_to_cache(full_batch, pixels)
        return pixels[seeds.start - full_batch.start : seeds.stop - full_batch.start].to(self.module.device)

    def is_cached(self, seeds: range) -> bool:
        """Return whether the batch that contains `seeds` is cached."""
        return self._load_cached(self._full_batch(seeds)) is not None

    def batch_files(self, seeds: Sequence[range]) -> list[str]:
        """Return the names of the files in which the batches with these seeds are cached."""
        batches = [self._full_batch(batch) for part in seeds for batch in self.batches(part)]
        return [_file_name(batch) for batch in batches]

    def protocol(self) -> dict[str, Any]:
        """Return the settings with which the images are generated, for fingerprints."""
        classes = self.num_classes
        unused = self.sampler.without_effect(classifier=self.guidance.classifier is not None)
        label = self.label
        if label is None:
            label = list(self.trained) or f"seed modulo {classes}"
        return {
            "sampler": describe(self.sampler, omit=("process", *unused)) | {"num_steps": len(self.sampler.times)},
            "schedule": describe(self.module.process.schedule),
            "weights": self.module.weights_protocol(self.weights),
            **({"conventions": added} if (added := self.module.conventions(unused)) else {}),
            **self._guidance_protocol(),
            "label": label if classes else None,
            "batch_size": self.micro_batch_size,
            "quantization": "rounded to 256 levels",
            **({} if (source := self.condition_images) is None else {source.field: source.protocol()}),
            **({} if self.module.space == Pixels() else {"space": self._space_protocol()}),
        }

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        """Return the class of each seed, int64 [B], or None for a network without classes."""
        classes, source = self.num_classes, self.condition_images
        labels = source.labels(seeds) if classes and self.label is None and source is not None else None
        return labels if labels is not None or not classes else labels_of(seeds, self.label, classes, self.trained)

    def condition(self, x_0: Tensor, label: Tensor | None, paired: Tensor | None, indices: Sequence[int]) -> Condition:
        """Return the condition for images that were not generated, see `ConditionImages.condition_of`."""
        source = self.condition_images
        return Condition(label) if source is None else source.condition_of(x_0, label, paired, indices)

    def identity(self, precision: str) -> str:
        """Return the SHA-256 of the weights, the sampling settings, the precision and the package version."""
        weights = weights_sha256(self.module.sampled_network(self.weights))
        return digest([self.protocol(), precision, __version__, weights])

    def _space_protocol(self) -> dict[str, Any]:
        space = self.module.space
        assert isinstance(space, Latents)
        return {"scale": space.scale, "shift": space.shift, "weights_sha256": weights_sha256(space.autoencoder)}

    def _guidance_protocol(self) -> dict[str, Any]:
        """Return the guidance scale, and the other guidance settings that have an effect."""
        guidance = self.guidance
        protocol = guidance.strength.protocol(self.module.network.in_channels)
        for name, model in (("guide", guidance.guide), ("classifier", guidance.classifier)):
            if model is not None:
                protocol[name] = {"weights_sha256": weights_sha256(cast(nn.Module, model.network))}
                protocol[name] |= {"conventions": own} if (own := getattr(model.network, "conventions", {})) else {}
        if guidance.classifier is not None:
            protocol["classifier_scale"] = float(guidance.classifier_scale)
        return protocol

    def _full_batch(self, seeds: range) -> range:
        """Return all seeds of the batch that contains `seeds`."""
        start = seeds.start // self.batch_size * self.batch_size
        return range(start, start + self.batch_size)

    def _generate_batch(self, seeds: range, on_step: OnStep | None) -> Tensor:
        label, source = self.labels(seeds), self.condition_images
        condition = Condition(label) if source is None else source.condition(seeds, label, self.module.device)
        while True:
            try:
                rows = [torch.tensor(part) for part in _split(range(len(seeds)), self.micro_batch_size)]
                conditions = [condition.select(part) for part in rows]
                micro_batches = zip(_split(seeds, self.micro_batch_size), conditions, strict=True)
                return torch.cat([self._generate_micro_batch(part, given, on_step) for part, given in micro_batches])
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1:
                    raise
            # The retry is outside of the exception handler, because the exception keeps the tensors of the failed pass
            # alive. The images change by rounding only, since each seed has its own noise.
            torch.cuda.empty_cache()
            self.micro_batch_size = -(-self.micro_batch_size // 2)

    def _generate_micro_batch(self, seeds: range, condition: Condition, on_step: OnStep | None) -> Tensor:
        images = self.module.sample(
            seeds,
            condition,
            sampler=self.sampler,
            guidance=self.guidance,
            weights=self.weights,
            stage=0 if self.condition_images is None else self.condition_images.stage,
            on_step=on_step,
        )
        return to_uint8(images).cpu()

    def _load_cached(self, seeds: range) -> Tensor | None:
        """Return the cached images of a full batch, uint8 [B, C, H, W], or None if its file is missing or damaged."""
        if self.folder is None:
            return None
        try:
            pixels = np.load(self._file(seeds), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        intact = pixels.shape == (len(seeds), *self.shape) and pixels.dtype == np.uint8
        return torch.from_numpy(pixels) if intact else None

    def _save_to_cache(self, seeds: range, pixels: Tensor) -> None:
        if self.folder is None:
            return
        with atomic_file(self._file(seeds), concurrent=True) as partial, partial.open("wb") as file:
            np.save(file, pixels.numpy())

    def _file(self, seeds: range) -> Path:
        assert self.folder is not None
        return self.folder / _file_name(seeds)


def _file_name(full_batch: range) -> str:
    return f"seeds_{full_batch.start:09}.npy"


def _require_condition_images(module: DiffusionModule, source: ConditionImages | None) -> None:
    channels = module.network.condition_channels
    if channels and source is None:
        raise ValueError("`condition_images` must be given for a network that is conditioned on images, got None.")
    if source is not None and channels != source.channels:
        accepted = f"have {channels} channels" if channels else "be None"
        raise ValueError(
            f"`condition_images` (in a cascade, the images of the previous run) must {accepted} for this network, "
            f"got images with {source.channels} channels."
        )
    if source is not None:
        source.require(module.labels.num_classes)


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers of a network."""
    content = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        content.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _split(seeds: range, size: int) -> list[range]:
    return [seeds[k : k + size] for k in range(0, len(seeds), size)]


def generate_with_frames(
    images: SeededImages, batches: Sequence[range], num_frames: int, advance: Callable[[int], None]
) -> tuple[Tensor, list[Tensor]]:
    """Generate images, and frames for an animation of the sampling process.

    Collective: call on all ranks; each rank receives all images and frames.

    batches: seeds of the batches that this rank generates.
    num_frames: number of frames. Frames are recorded after evenly spaced sampler steps, which include the last step.
    advance: function that is called with 1 after each step of each batch.
    Returns the images, uint8 [N, C, H, W], and a list of frames. Each frame consists of the noisy images x_t after one
    of these steps, uint8 [N, C, H, W]. There are fewer than num_frames frames if the sampler has fewer steps.
    """
    num_steps = len(images.sampler.times)
    frame_steps = sorted({round(step) for step in np.linspace(1, num_steps, min(num_frames, num_steps))})  # can be []
    pixels, frames = [torch.zeros(0, *images.shape, dtype=torch.uint8)], list[Tensor]()

    def generate(seeds: range) -> None:
        recorded: dict[int, list[Tensor]] = {step: [] for step in frame_steps}

        def on_step(num_done: int, x_t: Tensor, x_0: Tensor) -> None:
            advance(1)
            if num_done in recorded:
                recorded[num_done].append(to_uint8(images.module.space.decode(x_t)).cpu())

        pixels.append(images.generate(seeds, on_step).cpu())
        if num_frames:
            first = seeds.start % images.batch_size
            # Only the last batch_size images are valid, because a forward pass that ran out of memory may have recorded
            # images before it failed.
            full_batch = torch.stack([torch.cat(recorded[step])[-images.batch_size :] for step in frame_steps], dim=1)
            frames.append(full_batch[first : first + len(seeds)])

    ranks = Ranks.current()
    with ranks.raise_together():
        for seeds in batches:
            generate(seeds)
    empty = torch.zeros(0, len(frame_steps), *images.shape, dtype=torch.uint8)
    gathered = ranks.all_gather(torch.cat([empty, *frames])) if num_frames else empty  # [N, frames, C, H, W]
    return ranks.all_gather(torch.cat(pixels)), list(gathered.unbind(1))

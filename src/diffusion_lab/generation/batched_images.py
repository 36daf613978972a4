"""Images that a network generates in full batches, with a cache of finished batches."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_lab import __version__
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.fingerprints import digest
from diffusion_lab.generation.condition_images import ConditionImages
from diffusion_lab.generation.indexed_images import IndexedImages
from diffusion_lab.guidance import Guidance
from diffusion_lab.networks import Condition
from diffusion_lab.randomness import ImageNoise, Purpose
from diffusion_lab.samplers import OnStep, Sampler
from diffusion_lab.training.diffusion_module import DiffusionModule


class BatchedImages(IndexedImages):
    """The images that a network generates, each with an index.

    Since rounding depends on the batch size, images are always generated in the same full batches, with the indices
    k * batch_size to (k + 1) * batch_size - 1, even if only some of the images are requested.

    module: module of the network.  sampler: sampler that generates the images.  guidance: guidance of the samples.
    weights: name of the weights, see `DiffusionModule.sampled_network`.
    condition_images: images that the network is conditioned on, such as those of the previous network of a cascade.
    micro_batch_size: number of images in a forward pass: smaller than batch_size if a full batch did not fit into
        memory.
    folder: folder in which finished batches are cached, so that an interrupted job can be resumed.
    """

    action = "sampling"

    def __init__(
        self,
        module: DiffusionModule,
        sampler: Sampler,
        guidance: Guidance,
        *,
        weights: str | None,
        condition_images: ConditionImages | None,
        batch_size: int,
        folder: Path | None,
    ) -> None:
        """Raise ValueError if batch_size is below 1."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.module, self.sampler, self.guidance = module, sampler, guidance
        self.weights, self.condition_images = weights, condition_images
        self.batch_size = self.micro_batch_size = batch_size
        self.folder = folder

    def identity(self, precision: str) -> str:
        """Return the SHA-256 of the weights, the sampling settings, the precision and the package version."""
        weights = weights_sha256(self.module.sampled_network(self.weights))
        return digest([self.protocol(), precision, __version__, weights])

    @property
    def stage(self) -> int:
        """Index of the network in its cascade."""
        return 0 if self.condition_images is None else self.condition_images.stage

    def seeds(self, indices: Sequence[int]) -> Sequence[int]:
        """Return the seed of the noise of each image."""
        return indices

    def condition_noise(self, indices: Sequence[int], shape: Sequence[int], stage: int) -> Tensor:
        """Return the noise that the next network of a cascade, of this stage, adds to the images: [B, *shape]."""
        purpose = Purpose.SAMPLED_CONDITION
        return ImageNoise(self.seeds(indices), shape, self.device, stage=stage, purpose=purpose).draw()

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Number of sampler steps, which is the number of calls of on_step."""

    @property
    @abstractmethod
    def num_evaluations(self) -> int:
        """Number of evaluations of the denoiser for one image."""

    @property
    def num_passes(self) -> int:
        """Number of forward passes that take as long as all evaluations for one image, with their gradients."""
        return self.num_evaluations

    @abstractmethod
    def _label(self, indices: range) -> Tensor | None:
        """Return the labels that the network receives: classes, int64 [B], or mixtures, see `Condition`."""

    @abstractmethod
    def _draw(self, indices: range, condition: Condition, on_step: OnStep | None) -> Tensor:
        """Generate some images of a full batch in one forward pass, uint8 [b, C, H, W], on the CPU."""

    def _condition(self, full_batch: range) -> Condition:
        """Return the condition of the images of a full batch, which does not depend on the size of forward passes."""
        label, source = self._label(full_batch), self.condition_images
        condition = Condition(label) if source is None else source.condition(full_batch, label, self.device)
        return condition.to(self.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: [C, H, W]."""
        return self.module.image_shape

    @property
    def device(self) -> torch.device:
        return torch.device(self.module.device)

    def pixels(self, indices: range) -> Tensor:
        return self.generate(indices)

    def generate(self, seeds: range, on_step: OnStep | None = None) -> Tensor:
        """Generate images, uint8 [B, C, H, W], on the device of the module.

        seeds: consecutive indices in one full batch.
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

    def _full_batch(self, seeds: range) -> range:
        """Return all seeds of the batch that contains `seeds`."""
        start = seeds.start // self.batch_size * self.batch_size
        return range(start, start + self.batch_size)

    def _generate_batch(self, seeds: range, on_step: OnStep | None) -> Tensor:
        condition = self._condition(seeds)
        while True:
            try:
                return torch.cat([self._draw_part(part, condition, on_step) for part in self._parts(seeds)])
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1:
                    raise
            # The retry is outside of the exception handler, because the exception keeps the tensors of the failed pass
            # alive. The images change by rounding only, since each seed has its own noise.
            torch.cuda.empty_cache()
            self.micro_batch_size = -(-self.micro_batch_size // 2)

    def _parts(self, full_batch: range) -> list[range]:
        size = self.micro_batch_size
        return [full_batch[k : k + size] for k in range(0, len(full_batch), size)]

    def _draw_part(self, part: range, condition: Condition, on_step: OnStep | None) -> Tensor:
        """Generate a part of a full batch.  condition: condition of the full batch."""
        rows = torch.tensor(part) % self.batch_size
        return self._draw(part, condition.select(rows), on_step)

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


def weights_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers of a network."""
    content = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        content.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _file_name(full_batch: range) -> str:
    return f"seeds_{full_batch.start:09}.npy"

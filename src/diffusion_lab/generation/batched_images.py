"""Images that a network generates in full batches, with a cache of finished batches."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.atomic_files import atomic_file
from diffusion_lab.generation.indexed_images import IndexedImages
from diffusion_lab.guidance import Guidance
from diffusion_lab.samplers import OnStep, Sampler
from diffusion_lab.training.diffusion_module import DiffusionModule

Draw = Callable[[range, OnStep | None], Tensor]
"""Function of some indices of a full batch that returns their images, uint8 [b, C, H, W], on the CPU."""


class BatchedImages(IndexedImages):
    """The images that a network generates, each with an index.

    Since rounding depends on the batch size, images are always generated in the same full batches, with the indices
    k * batch_size to (k + 1) * batch_size - 1, even if only some of the images are requested.

    module: module of the network.  sampler: sampler that generates the images.  guidance: guidance of the samples.
    micro_batch_size: number of images in a forward pass: smaller than batch_size if a full batch did not fit into
        memory.
    folder: folder in which finished batches are cached, so that an interrupted job can be resumed.
    """

    action = "sampling"

    def __init__(
        self, module: DiffusionModule, sampler: Sampler, guidance: Guidance, *, batch_size: int, folder: Path | None
    ) -> None:
        """Raise ValueError if batch_size is below 1."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.module, self.sampler, self.guidance = module, sampler, guidance
        self.batch_size = self.micro_batch_size = batch_size
        self.folder = folder

    @abstractmethod
    def identity(self, precision: str) -> str:
        """Return the SHA-256 of the weights, the sampling settings, the precision and the package version."""

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
    def _draw(self, full_batch: range) -> Draw:
        """Return the function that generates the images of a full batch, in one or several forward passes."""

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
        draw = self._draw(seeds)
        while True:
            try:
                return torch.cat([draw(part, on_step) for part in _split(seeds, self.micro_batch_size)])
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1:
                    raise
            # The retry is outside of the exception handler, because the exception keeps the tensors of the failed pass
            # alive. The images change by rounding only, since each seed has its own noise.
            torch.cuda.empty_cache()
            self.micro_batch_size = -(-self.micro_batch_size // 2)

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


def _split(seeds: range, size: int) -> list[range]:
    return [seeds[k : k + size] for k in range(0, len(seeds), size)]

"""Batches of a step, for Lightning."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lab.data.augmentation import Augmentation
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.data.step_sampler import Share, StepSampler
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.networks import Condition
from diffusion_lab.randomness import Draws, Purpose


@dataclass
class ImageBatch:
    """The share of a step that falls to this process.

    x_0: uint8 [B, C, H, W] as loaded; float32 in [-1, 1], flipped or augmented, once on the device.  label: int64 [B].
    draws: all randomness of the step for these images.
    augmentation, low_resolution: what was done to each image, and its small one, once on the device; see `Condition`.
    """

    x_0: Tensor
    label: Tensor
    draws: Draws
    augmentation: Tensor | None = None
    low_resolution: Tensor | None = None

    @property
    def condition(self) -> Condition:
        """All that a network may be told."""
        return Condition(self.label, self.augmentation, self.low_resolution)

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: Any) -> "ImageBatch":
        # Lightning would wait for both copies, and with them for all that the device has still to do.
        on_gpu = torch.device(device).type == "cuda"
        x_0 = self.x_0.pin_memory() if on_gpu else self.x_0
        return replace(self, x_0=x_0.to(device, non_blocking=on_gpu), label=self.label.to(device, non_blocking=on_gpu))


class ImageDataModule(LightningDataModule):
    """The training split of any image set, in the order and with the randomness that (seed, step) fix.

    batch_size: images a step, over all processes and accumulated batches.  horizontal_flip: mirror half of the images.
    augmentation: distorts the images and says how; it mirrors them itself.
    low_resolution: makes the small image that a network for super-resolution is told.
    """

    def __init__(
        self,
        store: ImageStore,
        *,
        batch_size: int,
        seed: int,
        horizontal_flip: bool = False,
        num_workers: int = 0,
        augmentation: Augmentation | None = None,
        low_resolution: LowResolution | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
        if horizontal_flip and augmentation is not None:
            raise ValueError("horizontal_flip must be false where augmentation mirrors the images itself, got true.")
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.horizontal_flip, self.num_workers = horizontal_flip, num_workers
        self.augmentation, self.low_resolution = augmentation, low_resolution
        self._train: Images | None = None
        self.seconds_waited = 0.0
        """Spent in training waiting for batches."""

    @property
    def train_images(self) -> Images:
        """The training set, opened at the first call; decoded then, if no run decoded it before."""
        if self._train is None:
            self._train = self.store.load("train")
        return self._train

    def state_dict(self) -> dict[str, str]:
        """Which images the steps of a checkpoint were trained on."""
        return {"fingerprint": self.train_images.fingerprint}

    def train_dataloader(self) -> "_Batches":
        trainer = self.trainer
        assert trainer is not None
        sampler = StepSampler(
            len(self.train_images),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate=trainer.accumulate_grad_batches,
            first_step=trainer.global_step,
        )
        return _Batches(_Shares(self.train_images, self.seed, self.batch_size), sampler, self)

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        if self.horizontal_flip:
            mirror(batch.x_0, batch.draws.flips(0.5))
        batch = replace(batch, x_0=batch.x_0.float().div_(127.5).sub_(1))
        if self.augmentation is not None:
            x_0, done = self.augmentation(batch.x_0, batch.draws)
            batch = replace(batch, x_0=x_0, augmentation=done)
        return batch if self.low_resolution is None else _with_small_image(batch, self.low_resolution)


def _with_small_image(batch: ImageBatch, low: LowResolution) -> ImageBatch:
    """The small image beside the large one; its noise is told after what else was done."""
    small = low.of(batch.x_0)
    noise = batch.draws.noise(small, Purpose.CONDITION_NOISE) if low.max_noise else torch.zeros_like(small)
    told = low.condition(None, small, low.max_noise * batch.draws.condition_levels(), noise)
    parts = [part for part in (batch.augmentation, told.augmentation) if part is not None]
    augmentation = torch.cat(parts, dim=1) if parts else None
    return replace(batch, augmentation=augmentation, low_resolution=told.low_resolution)


def mirror(images: Tensor, mirrored: Tensor) -> None:
    """Turns over, in place, the images [B, C, H, W], uint8, for which `mirrored` [B] is true."""
    # While pixels are bytes, whole images at once, eight bytes at a time where they divide into them: choosing pixel by
    # pixel in float32 costs ten times as much.
    rows = mirrored.nonzero().squeeze(1).to(images.device, non_blocking=images.is_cuda)
    turned = images.index_select(0, rows).flip(-1).flatten(1)
    word = torch.int64 if turned.shape[1] % 8 == 0 else torch.uint8
    images.view(len(images), -1).view(word).index_copy_(0, rows, turned.view(word))


class _Batches(Iterable[ImageBatch]):
    """Micro-batches in the sampler's order, waited for by the clock; loaded by workers if there are any."""

    def __init__(self, shares: "_Shares", sampler: StepSampler, datamodule: ImageDataModule) -> None:
        self.shares, self.sampler, self.datamodule = shares, sampler, datamodule

    def __iter__(self) -> Iterator[ImageBatch]:
        # A DataLoader without workers would take as long as half a gather. An item is a whole micro-batch.
        num_workers = self.datamodule.num_workers
        batches: Iterator[ImageBatch] = map(self.shares.__getitem__, self.sampler)
        if num_workers:
            loader = DataLoader(self.shares, None, sampler=self.sampler, num_workers=num_workers, collate_fn=_unchanged)
            batches = iter(loader)
        while True:
            started = time.perf_counter()
            batch = next(batches)
            self.datamodule.seconds_waited += time.perf_counter() - started
            yield batch


class _Shares(Dataset[ImageBatch]):
    """Micro-batches by their share of a step."""

    def __init__(self, images: Images, seed: int, batch_size: int) -> None:
        self.images, self.seed, self.batch_size = images, seed, batch_size

    def __getitem__(self, share: Share) -> ImageBatch:
        draws = Draws(self.seed, share.step, share.positions, self.batch_size)
        return ImageBatch(self.images.gather(share.index), self.images.label[torch.from_numpy(share.index)], draws)


def _unchanged(batch: Any) -> Any:
    return batch

"""Batches of a step, for Lightning."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lab.data.augmentation import Augmentation
from diffusion_lab.data.image_store import Images, ImageStore
from diffusion_lab.data.step_sampler import Share, StepSampler
from diffusion_lab.randomness import Draws


@dataclass
class ImageBatch:
    """The share of a step that falls to this process.

    x_0: uint8 [B, C, H, W] as loaded; float32 in [-1, 1], flipped or augmented, once on the device.  label: int64 [B].
    draws: all randomness of the step for these images.
    augmentation: what was done to each image, float32 [B, num_channels], once on the device; None without augmentation.
    """

    x_0: Tensor
    label: Tensor
    draws: Draws
    augmentation: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: Any, non_blocking: bool = False) -> "ImageBatch":
        return replace(
            self,
            x_0=self.x_0.to(device, non_blocking=non_blocking),
            label=self.label.to(device, non_blocking=non_blocking),
        )


class ImageDataModule(LightningDataModule):
    """The training split of any image set, in the order and with the randomness that (seed, step) fix.

    batch_size: images a step, over all processes and accumulated batches.  horizontal_flip: mirror half of the images.
    augmentation: distorts the images and says how; it mirrors them itself.
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
        self.augmentation = augmentation
        self._train: Images | None = None

    @property
    def train_images(self) -> Images:
        """The training set, decoded at the first call."""
        if self._train is None:
            self._train = self.store.load("train")
        return self._train

    def train_dataloader(self) -> DataLoader[ImageBatch]:
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
        return DataLoader(
            _Shares(self.train_images, self.seed, self.batch_size),
            batch_size=None,  # an item is a whole micro-batch: one gather, no Python per image
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            persistent_workers=self.num_workers > 0,
        )

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        x_0 = batch.x_0.float().div_(127.5).sub_(1)
        if self.horizontal_flip:
            mirrored = batch.draws.flips(0.5).to(x_0.device)
            x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
        if self.augmentation is None:
            return replace(batch, x_0=x_0)
        x_0, augmentation = self.augmentation(x_0, batch.draws)
        return replace(batch, x_0=x_0, augmentation=augmentation)


class _Shares(Dataset[ImageBatch]):
    """Micro-batches by their share of a step."""

    def __init__(self, images: Images, seed: int, batch_size: int) -> None:
        self.images, self.seed, self.batch_size = images, seed, batch_size

    def __getitem__(self, share: Share) -> ImageBatch:
        index = torch.from_numpy(share.index)
        draws = Draws(self.seed, share.step, share.positions, self.batch_size)
        return ImageBatch(self.images.pixels[index], self.images.label[index], draws)


def _unchanged(batch: Any) -> Any:
    return batch

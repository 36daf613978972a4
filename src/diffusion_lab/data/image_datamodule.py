"""LightningDataModule that loads the training batches of an image set."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_lab.data.augmentation import Augmentation
from diffusion_lab.data.image_store import ImageStore, load_images, require_filled, require_store
from diffusion_lab.data.images import Images
from diffusion_lab.data.pairs import Pairs
from diffusion_lab.data.step_sampler import MicroBatch, StepSampler
from diffusion_lab.data.worker_memory import received, sent
from diffusion_lab.distributed import signals
from diffusion_lab.errors import UserError
from diffusion_lab.fingerprints import digest
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.masking import Masking
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import Draws


@dataclass
class ImageBatch:
    """Images of one micro-batch of this rank.

    x_0: images [B, C, H, W]: uint8 when loaded, followed by the channels of the paired images, if there are any;
        float32 in [-1, 1], flipped or augmented, on the device.
    label: labels, int64 [B].
    draws: all random numbers of the step for these images.
    augmentation, image, low_resolution_noise: conditions that are added on the device if the network takes them; see
        `Condition`.
    paired_channels: number of channels of x_0 that belong to the paired images.
    """

    x_0: Tensor
    label: Tensor
    draws: Draws
    augmentation: Tensor | None = None
    image: Tensor | None = None
    low_resolution_noise: Tensor | None = None
    paired_channels: int = 0

    @property
    def condition(self) -> Condition:
        """Everything that a network can be conditioned on."""
        return Condition(self.label, self.augmentation, self.image, self.low_resolution_noise)

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: Any) -> "ImageBatch":
        # Lightning's own transfer would block until all queued work of the device is done.
        on_gpu = torch.device(device).type == "cuda"
        x_0 = self.x_0.pin_memory() if on_gpu else self.x_0
        return replace(self, x_0=x_0.to(device, non_blocking=on_gpu), label=self.label.to(device, non_blocking=on_gpu))


class ImageDataModule(LightningDataModule):
    """Training split of an image set.  Image order and random numbers are functions of (seed, step).

    store: access to the image set.
    batch_size: global batch size, the number of images per step over all ranks and accumulated batches.
    seed: seed of the image order and of the random numbers.
    horizontal_flip: whether to flip each image with probability 1/2.
    num_workers: number of data loading workers; 0 loads batches in the training process.
    augmentation: transformation on which the network is conditioned; the transformation includes horizontal flips.
    low_resolution: settings of the low-resolution images on which a super-resolution network is conditioned.
    masking: distribution of the holes in the images on which an inpainting network is conditioned.
    pairs: place of the images on which an image-to-image network is conditioned.
    max_batches: number of batches of images to train on, the first images of the set; None uses all images.
    Raises ValueError if a number is out of range, or if more than one kind of condition image is given.
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
        masking: Masking | None = None,
        pairs: Pairs | None = None,
        max_batches: int | None = None,
    ) -> None:
        super().__init__()
        require_store(store)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
        if max_batches is not None and max_batches < 1:
            raise ValueError(f"max_batches must be at least 1 or null, got {max_batches}.")
        if horizontal_flip and augmentation is not None:
            raise ValueError(
                "horizontal_flip must be false with an augmentation (which flips images itself), got true."
            )
        self.pairs = pairs if pairs is not None and pairs.is_given else None
        _require_one_kind(low_resolution, masking, self.pairs)
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.horizontal_flip, self.num_workers = horizontal_flip, num_workers
        self.augmentation, self.max_batches = augmentation, max_batches
        self.low_resolution, self.masking = low_resolution, masking
        self._train: Images | None = None
        self.seconds_waited = 0.0
        """Time in seconds that training has waited for batches."""

    @property
    def train_images(self) -> Images:
        """Training set.  It is opened, and decoded if it is not in the cache, on first access."""
        if self._train is None:
            images = load_images(self.store, "train") if self.pairs is None else self.pairs.load(self.store, "train")
            images = require_filled(images, self.store, "train")
            num_images = len(images) if self.max_batches is None else self.max_batches * self.batch_size
            self._train = images if num_images >= len(images) else images.select(np.arange(num_images))
        return self._train

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training images and, if there are any, of their paired images."""
        images, condition = self.train_images, self.train_images.condition
        return images.fingerprint if condition is None else digest([images.fingerprint, condition.fingerprint])

    def condition_channels(self, channels: int) -> int:
        """Return the number of channels of the condition image; 0 without one.

        channels: number of channels of the images.
        """
        source = self.low_resolution or self.masking
        if source is not None:
            return source.condition_channels(channels)
        return 0 if self.pairs is None else self.pairs.channels

    def state_dict(self) -> dict[str, str]:
        """Return the fingerprint of the training images, which Lightning stores in checkpoints."""
        return {"fingerprint": self.fingerprint}

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
        return _Batches(_MicroBatches(self.train_images, self.seed, self.batch_size), sampler, self)

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        if self.horizontal_flip:
            horizontal_flip_(batch.x_0, batch.draws.flips(0.5))
        batch = replace(batch, x_0=from_uint8(batch.x_0))
        if self.augmentation is not None:
            x_0, augmentation_label = self.augmentation(batch.x_0, batch.draws)
            batch = replace(batch, x_0=x_0, augmentation=augmentation_label)
        return self._with_condition_image(batch)

    def _with_condition_image(self, batch: ImageBatch) -> ImageBatch:
        """Add the condition images to a batch.  Paired images have been flipped and augmented like the images."""
        source = self.low_resolution or self.masking
        if source is not None:
            condition = source.training_condition(batch.x_0, batch.draws)
            return replace(batch, image=condition.image, low_resolution_noise=condition.low_resolution_noise)
        if not batch.paired_channels:
            return batch
        x_0, image = (part.contiguous() for part in batch.x_0.tensor_split([-batch.paired_channels], dim=1))
        return replace(batch, x_0=x_0, image=image, paired_channels=0)


def _require_one_kind(low_resolution: LowResolution | None, masking: Masking | None, pairs: Pairs | None) -> None:
    """Raise ValueError if more than one kind of condition image is given."""
    kinds = {"low_resolution": low_resolution, "masking": masking, "data.condition_column": pairs}
    given = [name for name, kind in kinds.items() if kind is not None]
    if len(given) > 1:
        names = [pairs.setting if kinds[name] is pairs and pairs is not None else name for name in given]
        raise ValueError(
            "only one of low_resolution, masking and data.condition_column (or data.condition_path) can be given, "
            f"because a network is conditioned on one image, got {' and '.join(names)}."
        )


def horizontal_flip_(images: Tensor, mask: Tensor) -> None:
    """Flip the images for which `mask` [B] is true, in place.  images: uint8 [B, C, H, W]."""
    # Copies complete images, eight bytes at a time if their size allows it, while pixels are still uint8: a torch.where
    # over the float32 pixels takes ten times as long.
    rows = mask.nonzero().squeeze(1).to(images.device, non_blocking=images.is_cuda)
    flipped = images.index_select(0, rows).flip(-1).flatten(1)
    word = torch.int64 if flipped.shape[1] % 8 == 0 else torch.uint8
    images.view(len(images), -1).view(word).index_copy_(0, rows, flipped.view(word))


class _Batches(Iterable[ImageBatch]):
    """Micro-batches in the order of the sampler.  Measures the time that training waits for them."""

    def __init__(self, dataset: "_MicroBatches", sampler: StepSampler, datamodule: ImageDataModule) -> None:
        self.dataset, self.sampler, self.datamodule = dataset, sampler, datamodule

    def __iter__(self) -> Iterator[ImageBatch]:
        # An item of the dataset is a complete micro-batch. A DataLoader without workers would add half of the time that
        # gathering the images takes.
        num_workers = self.datamodule.num_workers
        batches: Iterator[ImageBatch] = map(self.dataset.__getitem__, self.sampler)
        if num_workers:
            batches = map(_received, self._start_workers(num_workers))
        while True:
            start_time = time.perf_counter()
            batch = next(batches)
            self.datamodule.seconds_waited += time.perf_counter() - start_time
            yield batch

    def _start_workers(self, num_workers: int) -> Iterator[Any]:
        """Return the batches that workers load, see `_sent`.  Raises UserError if workers cannot be started."""
        loader = DataLoader(
            self.dataset,
            None,
            sampler=self.sampler,
            num_workers=num_workers,
            collate_fn=_sent,
            worker_init_fn=_init_worker,
        )
        try:
            with signals.blocked():
                return iter(loader)
        except OSError as error:
            raise UserError(
                "data.num_workers must be 0 unless /dev/shm is writable and processes can be started, got "
                f"{num_workers} ({error.strerror})."
            ) from error


class _MicroBatches(Dataset[ImageBatch]):
    """Dataset that is indexed by a `MicroBatch` and returns the images of this micro-batch."""

    def __init__(self, images: Images, seed: int, batch_size: int) -> None:
        self.images, self.seed, self.batch_size = images, seed, batch_size

    def __getitem__(self, item: MicroBatch) -> ImageBatch:
        draws = Draws(self.seed, item.step, item.positions, self.batch_size)
        pixels, condition = self.images.gather(item.index), self.images.condition
        if condition is not None:
            pixels = torch.cat([pixels, condition.gather(item.index)], dim=1)
        label = self.images.label[torch.from_numpy(item.index)]
        return ImageBatch(pixels, label, draws, paired_channels=0 if condition is None else condition.channels)


def _init_worker(worker: int) -> None:
    signals.end_with_parent()


def _sent(batch: Any) -> tuple[Any, Any, Draws, int]:
    """Prepare a batch for its way from a worker to the training process."""
    return sent(batch.x_0), sent(batch.label), batch.draws, batch.paired_channels


def _received(parts: tuple[Any, Any, Draws, int]) -> ImageBatch:
    x_0, label, draws, paired_channels = parts
    return ImageBatch(received(x_0), received(label), draws, paired_channels=paired_channels)

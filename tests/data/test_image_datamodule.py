"""Batches of the training steps."""

import multiprocessing
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer

from diffusion_lab.data.augmentation import EDMAugmentation
from diffusion_lab.data.image_datamodule import ImageBatch, ImageDataModule, horizontal_flip_
from support.small_runs import FewImages


def first_batches(count: int, **settings: Any) -> list[ImageBatch]:
    data = ImageDataModule(FewImages(), batch_size=12, seed=3, **settings)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    batches = iter(data.train_dataloader())
    return [data.on_after_batch_transfer(next(batches), 0) for _ in range(count)]


def test_images_are_float32_in_minus_one_to_one_with_all_levels_exact() -> None:
    pixels = FewImages().load().gather(torch.arange(50))
    for batch in first_batches(3):
        assert batch.x_0.dtype == torch.float32
        levels = ((batch.x_0 + 1) * 127.5).round().to(torch.uint8)
        assert all(any(torch.equal(image, original) for original in pixels) for image in levels)
        assert batch.x_0.min() >= -1
        assert batch.x_0.max() <= 1


def test_batches_have_the_random_numbers_of_their_step_and_positions() -> None:
    batches = first_batches(3)
    assert [batch.draws.step for batch in batches] == [0, 1, 2]
    assert all(batch.draws.positions == list(range(12)) for batch in batches)


def test_each_image_is_flipped_at_random() -> None:
    plain, flipped = first_batches(4), first_batches(4, horizontal_flip=True)
    num_flipped = 0
    for one, other in zip(plain, flipped, strict=True):
        for before, after in zip(one.x_0, other.x_0, strict=True):
            assert torch.equal(after, before) or torch.equal(after, before.flip(-1))
            num_flipped += torch.equal(after, before.flip(-1))
    assert 12 < num_flipped < 36  # of 48


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 1, 3, 5)])  # image sizes that are and are not divisible by 8 bytes
def test_horizontal_flip_changes_only_the_selected_images(shape: tuple[int, ...]) -> None:
    images = torch.arange(torch.tensor(shape).prod().item()).to(torch.uint8).view(shape)
    flipped = images.clone()
    horizontal_flip_(flipped, torch.tensor([True, False, False, True, True]))
    for k, selected in enumerate([1, 0, 0, 1, 1]):
        assert torch.equal(flipped[k], images[k].flip(-1) if selected else images[k])


def test_augmented_images_have_augmentation_labels() -> None:
    augmentation = EDMAugmentation(0.5)
    plain, augmented = first_batches(2), first_batches(2, augmentation=augmentation)
    assert [batch.augmentation for batch in plain] == [None, None]
    for one, other in zip(plain, augmented, strict=True):
        images, label = augmentation(one.x_0, one.draws)
        assert not torch.equal(images, one.x_0)
        assert torch.equal(other.x_0, images)
        assert other.augmentation is not None
        assert torch.equal(other.augmentation, label)


def test_horizontal_flip_with_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"horizontal_flip must be false with an augmentation .* got true"):
        first_batches(1, augmentation=EDMAugmentation(), horizontal_flip=True)


def test_workers_do_not_change_the_batches() -> None:
    for one, other in zip(first_batches(3), first_batches(3, num_workers=2), strict=True):
        assert torch.equal(one.x_0, other.x_0)
        assert torch.equal(one.label, other.label)


def test_workers_outlive_signals_to_the_process_group_and_end_with_their_loader() -> None:
    data = ImageDataModule(FewImages(), batch_size=6, seed=0, num_workers=2)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1, global_step=0)
    others = multiprocessing.active_children()
    batches = iter(data.train_dataloader())
    first = next(batches)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    assert len(workers) == 2
    for name in ("INT", "TERM", "USR1", "HUP"):  # from another process, as a terminal or Slurm sends them
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert len([next(batches) for _ in range(9)]) == 9
    assert all(worker.is_alive() for worker in workers)
    del batches, first
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)

"""Checks before the first step of what callbacks and loggers need later."""

import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lab.callbacks import MeasureDistance, SampleImages, SaveLast
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.errors import UserError
from diffusion_lab.features import FashionCNN
from diffusion_lab.metrics.class_accuracy import ClassAccuracy
from diffusion_lab.metrics.metric import Metric
from diffusion_lab.metrics.precision_recall import PrecisionRecall
from diffusion_lab.networks import Labels
from diffusion_lab.runs.setup.callbacks import (
    build_loggers,
    checkpoint_bytes,
    require_default_callbacks,
    require_later_needs,
)
from diffusion_lab.samplers import DDIM
from support.small_runs import FewImages, fit, small_module

Usage = namedtuple("Usage", "total used free")


def measure(metric: Metric, folder: Path) -> MeasureDistance:
    sampler = DDIM(small_module().process, num_steps=3)
    return MeasureDistance(metric, str(folder), sampler=sampler, num_samples=100, every_n_steps=1000)


def require(callback: Any, labels: Labels | None = None, max_steps: int = 10) -> None:
    datamodule = ImageDataModule(FewImages(), batch_size=12, seed=3)
    require_later_needs([callback], small_module(labels), datamodule, max_steps)


def test_callbacks_without_the_default_callbacks_are_refused() -> None:
    own = {"gradient_norm": {"_target_": "my_project.GradientNorm"}}
    require_default_callbacks(OmegaConf.create({"callbacks": own | {"save_last": None}}), "with_defaults")
    for selected, named in (("gradient_norm", "gradient_norm"), (None, "CHOICE")):
        with pytest.raises(UserError, match=rf"got gradient_norm; \+callbacks={named} adds callbacks to them"):
            require_default_callbacks(OmegaConf.create({"callbacks": own}), selected)


def test_a_metric_that_needs_more_images_than_the_set_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"precision_recall \(features=\w+\) needs at least 61 training images, got 50; try metrics=fid"
    ):
        require(measure(PrecisionRecall(FashionCNN(), num_neighbors=60), tmp_path))
    require(measure(PrecisionRecall(FashionCNN(), num_neighbors=49), tmp_path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "class_accuracy must be .* class-conditional network .conditioning=label., got an unconditional"),
        (Labels(3), "`features` must be a classifier with 3 classes .* got fashion_cnn with 10 classes"),
    ],
)
def test_a_metric_that_does_not_fit_the_classes_is_refused(tmp_path: Path, labels: Labels | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require(measure(ClassAccuracy(FashionCNN()), tmp_path), labels)


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the folder of SampleImages must be writable, got .*/file/samples"):
        require(SampleImages(str(tmp_path / "file" / "samples"), every_n_steps=1000))
    require(SampleImages(str(tmp_path / "new" / "samples"), every_n_steps=1000))


@pytest.fixture
def free_space(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the free space of all disks, in multiples of a checkpoint of `small_module`."""
    size = checkpoint_bytes(small_module())

    def set_free(num_checkpoints: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, int(num_checkpoints * size)))

    return set_free


def test_a_disk_that_is_too_small_for_the_checkpoints_is_refused(
    tmp_path: Path, free_space: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    free_space(3.9)
    with pytest.raises(UserError, match=r"the disk of .* must have 3 MB free for 4 checkpoint files of 1 MB, got 3 MB"):
        require(SaveLast(str(tmp_path), every_n_steps=5))
    (tmp_path / "last.ckpt").write_bytes(bytes(checkpoint_bytes(small_module())))  # a resumed run replaces its files
    require(SaveLast(str(tmp_path), every_n_steps=5))
    (tmp_path / "last.ckpt").unlink()
    free_space(4.1)
    require(SaveLast(str(tmp_path), every_n_steps=5))
    assert not caplog.text
    require(SaveLast(str(tmp_path), every_n_steps=5, keep_every_n_steps=2))
    assert "5 checkpoints of 1 MB (callbacks.save_last.keep_every_n_steps=2) do not fit" in caplog.text


def test_the_expected_size_of_a_checkpoint_is_that_of_the_file(tmp_path: Path) -> None:
    module = small_module()
    fit(module, 1, callbacks=[SaveLast(str(tmp_path), every_n_steps=1)])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]["state"].values()
    tensors = [*checkpoint["state_dict"].values(), *(value for state in optimizer for value in state.values())]
    assert checkpoint_bytes(module) == pytest.approx(sum(tensor.nbytes for tensor in tensors), rel=0.02)


def test_a_logger_without_its_package_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": str(tmp_path)}
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"logger.tensorboard requires a package that is missing; run pip install tens"):
        build_loggers(OmegaConf.create({"logger": {"tensorboard": node}}))

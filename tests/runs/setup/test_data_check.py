"""The training images that a store of another package loads are checked before the run folder exists."""

import re
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from diffusion_lab.callbacks.measure_accuracy import measured_images
from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.images import Images
from diffusion_lab.errors import UserError
from diffusion_lab.evaluation.training_reference import TrainingReference
from diffusion_lab.networks import Labels
from diffusion_lab.paths import CONF
from diffusion_lab.runs.setup import training as training_setup
from diffusion_lab.runs.setup.condition import load_images
from diffusion_lab.runs.setup.data_check import load_class_names, load_classes
from diffusion_lab.runs.setup.reference import build_reference
from support.small_runs import FewImages, small_module


class Foreign(FewImages):
    """A store of another package, whose `load` returns images of the given pixels and labels."""

    def __init__(self, pixels: Any, label: Any = None) -> None:
        super().__init__()
        self.pixels, self.label = pixels, np.zeros(len(pixels), np.int64) if label is None else label

    def splits(self) -> list[str]:
        return ["train", "test"]

    def load(self, split: str = "train") -> Images:
        return Images(self.pixels, self.label, ("a", "b", "c"))


def data(store: FewImages) -> ImageDataModule:
    return ImageDataModule(store, batch_size=12, seed=3)


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 8, 8), (1, 9, 8)])
def test_images_of_another_shape_than_that_of_the_settings_are_refused(shape: tuple[int, ...]) -> None:
    message = (
        "data.store: `load` of Foreign must return images with data.channels=1 and data.resolution=8, uint8 "
        f"[4, 1, 8, 8], got images of the shape {[4, *shape]} for the split train."
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        load_classes(data(Foreign(np.zeros((4, *shape), np.uint8))), small_module())


def test_images_of_the_shape_of_the_settings_have_the_classes_of_their_labels() -> None:
    module, pixels = small_module(labels=Labels(3)), np.zeros((4, 1, 8, 8), np.uint8)
    assert load_classes(data(FewImages()), module) == ()
    assert load_classes(data(Foreign(pixels, np.array([0, 2, 0, 2]))), module) == (0, 2)
    with pytest.raises(UserError, match=r"^data.num_classes must be above the largest label \(3\), got 3\.$"):
        load_classes(data(Foreign(pixels, np.array([0, 3, 0, 2]))), module)


class Drawn(FewImages):
    def locate(self) -> None: ...


def test_train_checks_the_images_before_it_has_a_run_folder() -> None:
    no_callbacks = [f"callbacks.{name}=null" for name in ("sample_images", "measure_distance")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["run_folder=somewhere", "model=unet_quick", *no_callbacks])
    config.data.store = {"_target_": f"{__name__}.Drawn"}
    with pytest.raises(UserError, match=r"^data.store: `load` of Drawn must return .* got .* \[50, 1, 8, 8\] for the"):
        training_setup.build(config)


WRONG_TYPE = Foreign(np.zeros((4, 1, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (WRONG_TYPE, "`pixels` must be a uint8 array or tensor of the shape [N, C, H, W], got float32 [4, 1, 8, 8]."),
        (
            Foreign(np.zeros((4, 1, 8, 8), np.uint8), np.zeros(3, np.int64)),
            "`label` must have one label per image, 4, got 3.",
        ),
    ],
)
def test_arrays_that_are_no_images_are_refused_with_the_store(store: Foreign, message: str) -> None:
    message = f"^{re.escape(f'data.store: `load` of Foreign failed for the split train: {message}')}$"
    with pytest.raises(UserError, match=message):
        load_classes(data(store), small_module())
    with pytest.raises(UserError, match=message):
        load_class_names(data(store))


@pytest.mark.parametrize(
    "load",
    [
        measured_images,
        TrainingReference.of,
        lambda store: build_reference("train", store, None),  # type: ignore[arg-type]
        lambda store: load_images({}, store, "train"),  # type: ignore[arg-type]
    ],
)
def test_the_images_of_metrics_and_conditions_name_the_store_in_the_same_way(load: Any) -> None:
    with pytest.raises(ValueError, match=r"^`load` of Foreign failed for the split (train|test): `pixels` must be"):
        load(WRONG_TYPE)

"""Training images with held-out images: duplicates, copies in an evaluation, ranks and fingerprints."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusion_lab
from diffusion_lab.data import ImageStore, Selection
from diffusion_lab.data.images import Images
from diffusion_lab.evaluation import reference as reference_module
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.number import Number
from diffusion_lab.evaluation.training_reference import TrainingReference, held_out_split
from diffusion_lab.features import FashionCNN, Features, RawPixels
from diffusion_lab.generation.indexed_images import StoredImages
from diffusion_lab.metrics import FrechetDistance, Memorization
from diffusion_lab.metrics.metric import NearPair
from diffusion_lab.reporting.progress import progress_bar
from support.fake_features import StandIn
from support.ranks import run_on_ranks

NUM_TRAINING, NUM_TEST = 400, 300


def images(pixels: Tensor) -> Images:
    return Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))


def smooth(size: int, seed: int) -> Tensor:
    """Images of 4 x 4 pixels of one distribution."""
    generator = torch.Generator().manual_seed(seed)
    return (128 + 25 * torch.randn(size, 1, 4, 4, generator=generator)).clamp(0, 255).to(torch.uint8)


class TwoSplits(ImageStore):
    """A training split with three copies of image 7, and a test split with copies of training and test images."""

    def __init__(self, folder: Path) -> None:
        super().__init__(None, channels=1, resolution=4, cache_folder=folder)

    def splits(self) -> list[str]:
        return ["train", "test"]

    def load(self, split: str = "train") -> Images:
        pixels = smooth(NUM_TRAINING, 0)
        pixels[[20, 399]] = pixels[7].clone()
        if split == "train":
            return images(pixels)
        test = smooth(NUM_TEST, 1)
        test[[5, 250]] = pixels[[7, 100]].clone()
        test[260] = test[2].clone()
        return images(test)


def stored(pixels: Tensor) -> StoredImages:
    return StoredImages(images(pixels), {}, batch_size=16)


def measure(pixels: Tensor, folder: Path) -> tuple[list[Number], tuple[NearPair, ...]]:
    training = TrainingReference.of(TwoSplits(folder))
    evaluation = Evaluator(stored(pixels), training.training, len(pixels), training=training)
    features = StandIn()
    numbers = evaluation.measure([FrechetDistance(features), Memorization(features), Memorization(RawPixels())])
    return numbers, evaluation.near_pairs


def test_exact_copies_are_left_out_of_both_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    training = TrainingReference.of(TwoSplits(tmp_path))
    found = training.feature_sets(StandIn(), {"pooled": True}, progress_bar)["pooled"]
    assert len(found.require_rows()) == NUM_TRAINING - 2
    assert found.held_out is not None
    assert len(found.held_out) == NUM_TEST - 3
    assert float(torch.cdist(found.held_out.double(), found.require_rows().double()).min()) > 1
    assert training.numbers([6, 7, 19, 20, 397]).tolist() == [6, 7, 19, 21, 398]
    assert "left out as exact copies of others: 2 of the 400 images of train." in caplog.text
    assert "left out as exact copies of others or of training images: 3 of the 300 images of test." in caplog.text


def test_copies_of_training_images_are_caught_and_their_pairs_are_named(tmp_path: Path) -> None:
    pixels = torch.cat([smooth(200, 3), TwoSplits(tmp_path).load().gather(np.arange(50)), smooth(50, 4)])
    numbers, pairs = measure(pixels, tmp_path)
    values = {number.name: number.value for number in numbers}
    for name in ("stand_in", "pixels"):
        assert 50 / 300 <= values[f"memorized_share_{name}_300_train"] <= 60 / 300
        assert values[f"memorized_share_held_out_{name}_300_train"] <= 0.02
        assert values[f"c_t_{name}_300_train"] < -2
        assert abs(values[f"c_t_held_out_{name}_300_train"]) < 3 * values[f"c_t_held_out_std_{name}_300_train"]
        held_out = values[f"authenticity_held_out_{name}_300_train"]
        assert values[f"authenticity_{name}_300_train"] == pytest.approx(held_out * 250 / 300, abs=0.1)
    training = TrainingReference.of(TwoSplits(tmp_path))
    assert [pair.sample - 200 for pair in pairs] == list(range(48))
    expected = [7 if k == 20 else k for k in range(48)]  # image 20 is a copy of image 7
    assert training.numbers([pair.training for pair in pairs]).tolist() == expected
    assert torch.equal(training.pixels(np.array([7])), images(pixels).gather(np.array([220])))


@pytest.mark.full
def test_values_pairs_and_fingerprints_are_the_same_on_1_and_2_ranks(tmp_path: Path) -> None:
    pixels = smooth(150, 3)
    expected, pairs = measure(pixels, tmp_path / "cache1")
    for numbers, other_pairs in run_on_ranks(2, measure, tmp_path / "2", pixels, tmp_path / "cache2"):
        assert numbers[1:] == expected[1:]  # also the last digit
        assert other_pairs == pairs
    assert len(expected) == 1 + 9 + 9


def test_the_fingerprint_has_the_features_the_numbers_of_images_cells_and_the_share(tmp_path: Path) -> None:
    number = next(n for n in measure(smooth(150, 3), tmp_path)[0] if n.name == "memorized_share_pixels_150_train")
    assert number.fingerprint["metric"] == {"name": "Memorization", "share": 0.01, "num_cells": 1, "min_in_cell": 20}
    assert number.fingerprint["features"]["name"] == "pixels"
    reference = number.fingerprint["reference"]
    assert (reference["size"], reference["rows"]) == (NUM_TRAINING, NUM_TRAINING - 2)
    held_out = reference["held_out"]
    assert (held_out["split"], held_out["size"], held_out["rows"]) == ("test", NUM_TEST, NUM_TEST - 3)
    assert number.description.endswith("closer to a training image than the threshold; lower is better")


def test_of_a_large_set_a_fixed_random_subset_is_compared_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reference_module, "MAX_ROWS", 100)
    training = TrainingReference.of(TwoSplits(tmp_path))
    rows = training.feature_sets(StandIn(), {"pooled": True}, progress_bar)["pooled"].require_rows()
    assert "100 of the 400 images of train are compared with samples" in caplog.text
    pixels = training.pixels(training.numbers(range(len(rows))))
    assert torch.equal(StandIn()(pixels)["pooled"], rows)


def test_held_out_images_are_required(tmp_path: Path) -> None:
    assert held_out_split(["train", "test", "held_out"]) == "test"
    assert held_out_split(["train", "held_out"]) == "held_out"
    with pytest.raises(ValueError, match=r"without held-out images, got the splits train, extra; data\.num_held_out="):
        held_out_split(["extra"])
    training = TrainingReference.of(TwoSplits(tmp_path))
    evaluation = Evaluator(stored(smooth(200, 3)), None, 200, training=training)
    message = "test must contain at least 302 images for memorization (features=stand_in), got 300."
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluation.require([Memorization(StandIn(), min_in_cell=151)])
    with pytest.raises(ValueError, match=re.escape("`training` must be given for memorization (features=stand_in)")):
        Evaluator(stored(smooth(200, 3)), training.training, 200).require([Memorization(StandIn())])


@pytest.mark.full
@pytest.mark.parametrize("features", [FashionCNN(), RawPixels()], ids=["fashion_cnn", "pixels"])
def test_copies_of_clothes_are_caught_and_noise_hides_them_gradually(features: Features, tmp_path: Path) -> None:
    path = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"
    store = ImageStore(None, path, channels=1, resolution=28, fit="pad", selection=Selection(1000))
    training = TrainingReference.of(store)
    copies = training.training.images.gather(np.arange(500)).float()
    noise, shares = torch.randn(copies.shape, generator=torch.Generator().manual_seed(0)), []
    for scale in (0, 5, 15, 60):
        pixels = (copies + scale * noise).round().clamp(0, 255).to(torch.uint8)
        numbers = Evaluator(stored(pixels), None, 500, training=training).measure([Memorization(features)])
        values = {number.name.replace(f"_{features.name}_500_train", ""): number.value for number in numbers}
        shares.append(values["memorized_share"])
        assert values["memorized_share_held_out"] <= 0.02
        assert abs(values["c_t_held_out"]) < 3 * values["c_t_held_out_std"]
        assert 0.3 < values["authenticity_held_out"] < 0.9
        if scale == 0:
            assert values["c_t"] < -10
            assert values["authenticity"] == 0
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.05

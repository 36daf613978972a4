"""Comparison with torch-fidelity and pytorch-fid, for an Inception network with random weights."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

import diffusion_lab
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.features import Inception
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import FrechetDistance, frechet_distance
from diffusion_lab.metrics.inception_score import InceptionScore
from diffusion_lab.metrics.kid import KernelDistance
from diffusion_lab.metrics.metric import Metric
from diffusion_lab.metrics.precision_recall import PrecisionRecall
from diffusion_lab.pixels import from_uint8, to_uint8
from support.inception_weights import random_inception

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"

BATCH_SIZE = 10
"""The same for both libraries, since the last digits of features depend on it. Small ones are fastest on a CPU."""

pytestmark = pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")  # in pytorch-fid


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_inception(tmp_path_factory.mktemp("weights") / "random.pth")


class ImageDataset(Dataset[Tensor]):
    """Images in the form that torch-fidelity requires."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class Pair:
    """Two sets of images, uint8 [N, 3, H, W], and their features by the name of the output."""

    inception: Inception
    images: tuple[Tensor, Tensor]
    features: tuple[dict[str, FeatureSet], dict[str, FeatureSet]]

    @classmethod
    def of(cls, pixels: Tensor, weights: Path) -> "Pair":
        """Build a pair of one half of the images with added noise and the other half without."""
        noise = 0.3 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        images = to_uint8(from_uint8(pixels) + noise)[0::2], pixels[1::2]
        inception = Inception(weights)
        return cls(inception, images, (features_of(images[0], inception), features_of(images[1], inception)))

    def measure(self, metric: Metric) -> dict[str, float]:
        """Measure with the output that the metric requires."""
        samples, reference = self.features
        return metric.measure(samples[metric.output], reference[metric.output])

    def by_torch_fidelity(self, weights: Path, subset_size: int, num_splits: int) -> dict[str, float]:
        """Return the numbers that torch-fidelity computes from the same images and weights."""
        samples, reference = self.images
        found: dict[str, float] = calculate_metrics(
            input1=ImageDataset(samples), input2=ImageDataset(reference), batch_size=BATCH_SIZE, cuda=False,
            cache=False, fid=True, kid=True, isc=True, prc=True, kid_subset_size=subset_size, isc_splits=num_splits,
            feature_layer_prc="2048", feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(weights), save_cpu_ram=True, verbose=False,
        )  # fmt: skip
        return found

    def fids_over(self, dimensions: int) -> tuple[float, float]:
        """Return our FID and that of pytorch-fid, for the first features only: scipy's root requires few dimensions."""
        sets = [FeatureSet.of(outputs["pooled"].require_rows()[:, :dimensions]) for outputs in self.features]
        rows = [features.require_rows().numpy() for features in sets]
        statistics = [(np.mean(part, axis=0), np.cov(part, rowvar=False)) for part in rows]
        return float(frechet_distance(*sets)), float(calculate_frechet_distance(*statistics[0], *statistics[1]))


def features_of(images: Tensor, inception: Inception) -> dict[str, FeatureSet]:
    batches = [inception(batch) for batch in torch.split(images, BATCH_SIZE)]
    return {name: FeatureSet.of(torch.cat([batch[name] for batch in batches])) for name in inception.outputs}


def assert_agreement(pair: Pair, weights: Path, *, subset_size: int, num_splits: int) -> dict[str, float]:
    """Assert that our numbers are those of torch-fidelity, and return them."""
    inception, expected = pair.inception, pair.by_torch_fidelity(weights, subset_size, num_splits)
    found = pair.measure(FrechetDistance(inception)) | pair.measure(PrecisionRecall(inception))
    for metric in (KernelDistance(inception, subset_size=subset_size), InceptionScore(inception, num_splits)):
        found |= pair.measure(metric)
    assert found["fd"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert found["kd"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert found["kd_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-2)
    assert found["cs"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found["cs_std"] == pytest.approx(expected["inception_score_std"], rel=1e-4)
    tolerance = min(1.5 / len(pair.images[0]), 1e-3)  # among thousands of images, one may be on the border of a ball
    assert found["precision"] == pytest.approx(expected["precision"], abs=tolerance)
    assert found["recall"] == pytest.approx(expected["recall"], abs=tolerance)
    return found


@pytest.mark.full
def test_numbers_of_eight_images_agree_with_torch_fidelity_and_pytorch_fid(weights: Path) -> None:
    images = ImageStore(None, FASHION_MINI, channels=3, resolution=32).load()
    pair = Pair.of(images.gather(np.arange(32, 48)), weights)
    found = assert_agreement(pair, weights, subset_size=4, num_splits=4)
    assert found["fd"] > 1  # otherwise the weights do not distinguish images
    assert found["cs"] > 1.01  # close to 1 if pooled features are used instead of logits
    assert 0 < found["precision"] != found["recall"] < 1
    ours, theirs = pair.fids_over(4)  # fewer features than images, or their covariance is singular
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:Matrix is singular")  # some features are 0 for all photographs
def test_numbers_of_thousands_of_photographs_agree_with_torch_fidelity_and_pytorch_fid(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4,400 images of CIFAR-10 in the folder DIFFUSION_LAB_CIFAR10, or of the embedded set if it is not set."""
    folder = os.environ.get("DIFFUSION_LAB_CIFAR10")
    settings: dict[str, Any] = {"image_column": "img"} if folder else {}
    images = ImageStore(None, folder or FASHION_MINI, channels=3, resolution=32, **settings).load()
    pair = Pair.of(images.gather(np.arange(4400)), weights)
    found = assert_agreement(pair, weights, subset_size=1000, num_splits=10)
    ours, theirs = pair.fids_over(2048)
    assert ours == pytest.approx(theirs, rel=1e-4)
    with capsys.disabled():
        print(f"\nthis package and torch-fidelity: {found}\npytorch-fid: {theirs}")

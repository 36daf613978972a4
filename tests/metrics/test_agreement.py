"""Our numbers beside those of torch-fidelity and pytorch-fid, through an Inception of random weights."""

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
from diffusion_lab.pixels import to_uint8
from support.inception_weights import random_inception

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"

BATCH_SIZE = 10
"""Of both sides, since the last digits of features depend on it; small ones are fastest on a CPU."""

pytestmark = pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")  # in pytorch-fid


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_inception(tmp_path_factory.mktemp("weights") / "random.pth")


class Listed(Dataset[Tensor]):
    """Images as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class Pair:
    """Two sets, uint8 [N, 3, H, W], and the features of each by the name of the output."""

    inception: Inception
    images: tuple[Tensor, Tensor]
    features: tuple[dict[str, FeatureSet], dict[str, FeatureSet]]

    @classmethod
    def of(cls, pixels: Tensor, weights: Path) -> "Pair":
        """Half of the images with noise, as samples in [-1, 1] would come, beside the other half without."""
        noise = 0.3 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        images = to_uint8(pixels.float() / 127.5 - 1 + noise)[0::2], pixels[1::2]
        inception = Inception(weights)
        return cls(inception, images, (features_of(images[0], inception), features_of(images[1], inception)))

    def measured_by(self, metric: Metric) -> dict[str, float]:
        """Over the output that the metric itself asks for."""
        samples, reference = self.features
        return metric.measure(samples[metric.output], reference[metric.output])

    def by_torch_fidelity(self, weights: Path, subset_size: int) -> dict[str, float]:
        """All on its own, from the same images."""
        samples, reference = self.images
        found: dict[str, float] = calculate_metrics(
            input1=Listed(samples), input2=Listed(reference), batch_size=BATCH_SIZE, cuda=False, cache=False,
            fid=True, kid=True, isc=True, prc=True, kid_subset_size=subset_size, feature_layer_prc="2048",
            feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
            save_cpu_ram=True, verbose=False,
        )  # fmt: skip
        return found

    def fids_over(self, dimensions: int) -> tuple[float, float]:
        """Ours and pytorch-fid's over the first features alone, or scipy would doubt its root."""
        sets = [FeatureSet.of(seen["pooled"].require_rows()[:, :dimensions]) for seen in self.features]
        rows = [features.require_rows().numpy() for features in sets]
        statistics = [(np.mean(part, axis=0), np.cov(part, rowvar=False)) for part in rows]
        return float(frechet_distance(*sets)), float(calculate_frechet_distance(*statistics[0], *statistics[1]))


def features_of(images: Tensor, inception: Inception) -> dict[str, FeatureSet]:
    batches = [inception(batch) for batch in torch.split(images, BATCH_SIZE)]
    return {name: FeatureSet.of(torch.cat([batch[name] for batch in batches])) for name in inception.outputs}


def require_the_same(pair: Pair, expected: dict[str, float], subset_size: int) -> dict[str, float]:
    """Raises AssertionError unless ours are torch-fidelity's numbers.  Returns ours."""
    inception = pair.inception
    found = pair.measured_by(FrechetDistance(inception))
    for metric in (KernelDistance(inception, subset_size=subset_size), InceptionScore(inception)):
        found |= pair.measured_by(metric)
    found |= pair.measured_by(PrecisionRecall(inception))
    assert found["fd"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert found["kid_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-2)
    assert found["is"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found["is_std"] == pytest.approx(expected["inception_score_std"], rel=1e-4)
    size = len(pair.images[0])
    assert found["precision"] == pytest.approx(expected["precision"], abs=1.5 / size)  # one image may sit on a border
    assert found["recall"] == pytest.approx(expected["recall"], abs=1.5 / size)
    return found


def test_sixty_images_have_torch_fidelitys_and_pytorch_fids_numbers(weights: Path) -> None:
    images = ImageStore(None, FASHION_MINI, channels=3, resolution=32).load()
    pair = Pair.of(images.gather(np.arange(120)), weights)
    found = require_the_same(pair, pair.by_torch_fidelity(weights, 20), subset_size=20)
    assert found["fd"] > 1  # or the weights would not tell images apart
    assert found["is"] > 1.02  # pooled features taken for logits: 1.0006
    assert 0 < found["precision"] != found["recall"]
    ours, theirs = pair.fids_over(20)
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:Matrix is singular")  # some features of random weights are 0 on all photographs
def test_thousands_of_photographs_have_torch_fidelitys_and_pytorch_fids_numbers(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2,200 of CIFAR-10 in the folder DIFFUSION_LAB_CIFAR10 beside 2,200 with noise; clothes where it is not set."""
    folder = os.environ.get("DIFFUSION_LAB_CIFAR10")
    settings: dict[str, Any] = {"image_column": "img"} if folder else {}
    images = ImageStore(None, folder or FASHION_MINI, channels=3, resolution=32, **settings).load()
    pair = Pair.of(images.gather(np.arange(4400)), weights)
    expected = pair.by_torch_fidelity(weights, 1000)
    found = require_the_same(pair, expected, subset_size=1000)
    ours, theirs = pair.fids_over(2048)
    assert ours == pytest.approx(theirs, rel=1e-4)
    with capsys.disabled():
        print(f"\nours {found}\ntorch-fidelity's {expected}\npytorch-fid's {theirs}")

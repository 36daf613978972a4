import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from diffusion_lab.metrics.features import FashionCNN, Features
from diffusion_lab.metrics.frechet import FrechetDistance, frechet_distance


class Pixels(Features):
    """Features that are the pixels themselves, so that every sum of them is exact."""

    name = "pixels"
    num_features = 12
    channels = (1,)

    def extract(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).float()


class StandInForInception(Pixels):
    name = "inception"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_pixels(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200 + 40 * seed, (size, 1, 4, 3), dtype=torch.uint8, generator=generator)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean(0), features.T.cov()


def measured(reference: list[Tensor], samples: list[Tensor]) -> float:
    metric = FrechetDistance(Pixels(), num_samples=2000)
    for pixels in reference:
        metric.update(pixels, reference=True)
    for pixels in samples:
        metric.update(pixels, reference=False)
    return float(metric.compute())


@given(st.lists(st.tuples(*[st.floats(-2, 2), st.floats(0, 3)] * 2), min_size=1, max_size=6))
def test_distance_of_independent_gaussians_is_that_of_their_means_and_deviations(
    dimensions: list[tuple[float, float, float, float]],
) -> None:
    mean_1, deviation_1, mean_2, deviation_2 = torch.tensor(dimensions, dtype=torch.float64).T
    distance = frechet_distance(mean_1, (deviation_1**2).diag(), mean_2, (deviation_2**2).diag())
    expected = (mean_1 - mean_2).square().sum() + (deviation_1 - deviation_2).square().sum()
    assert float(distance) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


def test_distance_of_commuting_covariances_is_that_of_their_roots() -> None:
    basis = torch.linalg.qr(random(7, 7))[0]
    roots_1, roots_2 = torch.arange(1, 8).double(), torch.tensor([3.0, 0.5, 2.0, 5.0, 1.0, 4.0, 0.1]).double()
    covariances = [basis @ (roots**2).diag() @ basis.T for roots in (roots_1, roots_2)]
    distance = frechet_distance(torch.zeros(7).double(), covariances[0], torch.ones(7).double(), covariances[1])
    assert float(distance) == pytest.approx(7 + float((roots_1 - roots_2).square().sum()), rel=1e-9)


@pytest.mark.parametrize("size", [9, 300])
def test_distance_of_a_set_to_itself_is_0(size: int) -> None:
    mean, covariance = moments(random(size, 20))
    assert float(frechet_distance(mean, covariance, mean, covariance)) == pytest.approx(0, abs=1e-6)
    pixels = random_pixels(size)
    assert measured([pixels], [pixels]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("size_1", "size_2"), [(9, 13), (13, 9), (9, 300), (300, 9), (300, 200)])
def test_distance_of_fewer_images_than_features_is_exact(size_1: int, size_2: int) -> None:
    features_1, features_2 = random(size_1, 40), 1.5 * random(size_2, 40, seed=1) + 0.2
    roots_1, roots_2 = (f.sub(f.mean(0)).div(math.sqrt(len(f) - 1)) for f in (features_1, features_2))
    # Covariances are roots' roots: then tr (C1 C2)^(1/2) is the sum of the singular values of roots_1 roots_2'.
    overlap = torch.linalg.svdvals(roots_1 @ roots_2.T).sum()
    expected = (features_1.mean(0) - features_2.mean(0)).square().sum()
    expected += roots_1.square().sum() + roots_2.square().sum() - 2 * overlap
    distance = frechet_distance(*moments(features_1), *moments(features_2))
    assert float(distance) == pytest.approx(float(expected), rel=2e-7)


def test_distance_without_any_spread_is_that_of_the_means() -> None:
    nothing, origin = torch.zeros(4, 4).double(), torch.zeros(4).double()
    assert float(frechet_distance(origin, nothing, origin + 3, nothing)) == pytest.approx(36, rel=1e-9)


def test_distance_is_that_of_torch_fidelity_on_the_same_features() -> None:
    reference, samples = random_pixels(300), random_pixels(200, seed=1)
    theirs = [fid_features_to_statistics(pixels.flatten(1).double()) for pixels in (samples, reference)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID]
    assert expected > 100
    assert measured([reference], [samples]) == pytest.approx(expected, rel=1e-6)


def test_distance_does_not_depend_on_how_images_are_batched() -> None:
    reference, samples = random_pixels(2000), random_pixels(1500, seed=1)
    whole = measured([reference], [samples])
    parts = measured([reference[:64], reference[64:128], reference[128:]], [samples[:7], samples[7:900], samples[900:]])
    assert whole == parts  # to the last bit: sums of whole numbers below 2^53


def test_distance_of_shared_out_images_is_that_of_all_of_them() -> None:
    reference, samples = random_pixels(300), random_pixels(200, seed=1)
    processes = [FrechetDistance(Pixels(), num_samples=2000) for _ in range(2)]
    for rank, metric in enumerate(processes):
        metric.update(reference[rank::2], reference=True)
        metric.update(samples[rank::2], reference=False)
    processes[0].merge_state(processes[1])
    assert float(processes[0].compute()) == measured([reference], [samples])


def test_sums_are_float64() -> None:
    metric = FrechetDistance(Pixels(), num_samples=2000)
    metric.update(torch.full((70_000, 1, 4, 3), 255, dtype=torch.uint8), reference=True)
    assert metric.reference_product.dtype == torch.float64
    assert metric.reference_product.unique().tolist() == [70_000 * 255**2]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("features", "num_samples", "name"),
    [
        (FashionCNN(None), 2000, "fd_fashion_cnn_2k"),
        (FashionCNN(None), 2048, "fd_fashion_cnn_2048"),
        (Pixels(), 500, "fd_pixels_500"),
        (StandInForInception(), 50_000, "fid_inception_50k"),
        (StandInForInception(), 10_001, "fid_inception_10001"),
    ],
)
def test_the_name_says_which_features_and_how_many_images(features: Features, num_samples: int, name: str) -> None:
    assert FrechetDistance(features, num_samples).name == name


@pytest.mark.parametrize(("num_reference", "num_generated", "kind"), [(9, 1, "sample"), (1, 9, "reference")])
def test_fewer_than_two_images_have_no_distance(num_reference: int, num_generated: int, kind: str) -> None:
    with pytest.raises(ValueError, match=f"fd_pixels_2k needs at least 2 {kind} images, got 1"):
        measured([random_pixels(num_reference)], [random_pixels(num_generated)])


@pytest.mark.parametrize("num_samples", [1, 0, -5])
def test_asking_for_fewer_than_two_images_is_refused(num_samples: int) -> None:
    with pytest.raises(ValueError, match=f"num_samples must be at least 2, got {num_samples}"):
        FrechetDistance(Pixels(), num_samples)


def test_forgetting_the_samples_keeps_the_reference() -> None:
    reference, early, late = random_pixels(300), random_pixels(100), random_pixels(200, seed=1)
    metric = FrechetDistance(Pixels(), num_samples=2000)
    metric.update(reference, reference=True)
    metric.update(early, reference=False)
    first = float(metric.compute())
    metric.reset_samples()
    metric.update(late, reference=False)
    assert first == measured([reference], [early])
    assert float(metric.compute()) == measured([reference], [late])
    assert int(metric.sample_count) == 200


def test_the_order_of_reference_and_samples_does_not_matter() -> None:
    one, other = random_pixels(300), random_pixels(200, seed=1)
    assert measured([one], [other]) == pytest.approx(measured([other], [one]), rel=1e-9)
    assert not np.isclose(measured([one], [other]), 0)

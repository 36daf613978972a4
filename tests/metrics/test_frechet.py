import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from diffusion_lab.features import FashionCNN
from diffusion_lab.metrics import DensityCoverage, KernelDistance, Metric, PrecisionRecall
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import FrechetDistance, SpatialFrechetDistance, frechet_distance
from diffusion_lab.metrics.metric import full_name
from support.fake_features import Spatial, StandIn


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(mean: Tensor, covariance: Tensor) -> FeatureSet:
    """Set of which only mean and covariance are known."""
    return FeatureSet(1000, mean, covariance)


def distance(one: FeatureSet, other: FeatureSet) -> float:
    return float(frechet_distance(one, other))


@given(st.lists(st.tuples(*[st.floats(-2, 2), st.floats(0, 3)] * 2), min_size=1, max_size=6))
def test_distance_of_diagonal_gaussians_is_that_of_their_means_and_stds(
    dimensions: list[tuple[float, float, float, float]],
) -> None:
    mean_1, std_1, mean_2, std_2 = torch.tensor(dimensions, dtype=torch.float64).T
    found = distance(gaussian(mean_1, (std_1**2).diag()), gaussian(mean_2, (std_2**2).diag()))
    expected = (mean_1 - mean_2).square().sum() + (std_1 - std_2).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


def test_distance_of_commuting_covariances_is_that_of_their_square_roots() -> None:
    basis = torch.linalg.qr(random(7, 7))[0]
    roots_1, roots_2 = torch.arange(1, 8).double(), torch.tensor([3.0, 0.5, 2.0, 5.0, 1.0, 4.0, 0.1]).double()
    covariances = [basis @ (roots**2).diag() @ basis.T for roots in (roots_1, roots_2)]
    means = torch.zeros(7).double(), torch.ones(7).double()
    found = distance(*(gaussian(*moments) for moments in zip(means, covariances, strict=True)))
    assert found == pytest.approx(7 + float((roots_1 - roots_2).square().sum()), rel=1e-9)


@pytest.mark.parametrize("size", [9, 300])
def test_distance_of_a_set_to_itself_is_0_and_never_negative(size: int) -> None:
    for seed in range(6):
        with_rows = FeatureSet.of(random(size, 20, seed=seed).float())
        assert 0 <= distance(with_rows, with_rows) < 1e-12
        moments = gaussian(with_rows.mean, with_rows.covariance)
        assert 0 <= distance(moments, moments) < 1e-6


@pytest.mark.parametrize(("size_1", "size_2"), [(9, 13), (13, 9), (9, 300), (300, 9), (300, 200)])
def test_distance_of_fewer_images_than_features_is_exact(size_1: int, size_2: int) -> None:
    features_1, features_2 = random(size_1, 40), 1.5 * random(size_2, 40, seed=1) + 0.2
    roots_1, roots_2 = (f.sub(f.mean(0)).div(math.sqrt(len(f) - 1)) for f in (features_1, features_2))
    # The covariances are C = roots' roots, so tr (C1 C2)^(1/2) is the sum of the singular values of roots_1 roots_2'.
    overlap = torch.linalg.svdvals(roots_1 @ roots_2.T).sum()
    expected = (features_1.mean(0) - features_2.mean(0)).square().sum()
    expected += roots_1.square().sum() + roots_2.square().sum() - 2 * overlap
    sets = (FeatureSet.of(features_1), FeatureSet.of(features_2))
    assert distance(*sets) == pytest.approx(float(expected), rel=1e-12)
    # From mean and covariance only, the error is the root of their rounding error.
    assert distance(*(gaussian(s.mean, s.covariance) for s in sets)) == pytest.approx(float(expected), rel=2e-7)


def test_distance_without_variance_is_that_of_the_means() -> None:
    zero, origin = torch.zeros(4, 4).double(), torch.zeros(4).double()
    assert distance(gaussian(origin, zero), gaussian(origin + 3, zero)) == pytest.approx(36, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")  # in pytorch-fid
@pytest.mark.parametrize(("size_1", "size_2", "dimensions"), [(300, 200, 12), (70, 66, 64)])
def test_distance_agrees_with_torch_fidelity_and_pytorch_fid(size_1: int, size_2: int, dimensions: int) -> None:
    """For many more images than features, and for few more."""
    one, other = random(size_1, dimensions).float(), (1.5 * random(size_2, dimensions, seed=1) + 0.2).float()
    found = FrechetDistance(StandIn()).measure(FeatureSet.of(one), FeatureSet.of(other))["fd"]
    expected = [fid_features_to_statistics(features.double()) for features in (one, other)]
    assert found == pytest.approx(fid_statistics_to_metric(*expected, verbose=False)[KEY_METRIC_FID], rel=1e-6)
    statistics = [(np.mean(rows, axis=0), np.cov(rows, rowvar=False)) for rows in (one.numpy(), other.numpy())]
    assert found == pytest.approx(calculate_frechet_distance(*statistics[0], *statistics[1]), rel=1e-5)


def test_mean_and_covariance_are_float64() -> None:
    """In float32, the covariance of features far from 0 would consist of rounding errors."""
    rows = 1000 + 0.01 * random(500, 3).float()
    features = FeatureSet.of(rows)
    assert torch.allclose(features.covariance, rows.double().T.cov(), rtol=1e-9, atol=0)
    assert torch.allclose(features.mean, rows.double().mean(0), rtol=1e-12, atol=0)


def test_a_nearly_singular_covariance_has_a_real_factor() -> None:
    features = FeatureSet.of(torch.cat([random(200, 5), 1e-9 * random(200, 5, seed=1)], dim=1))
    factor = gaussian(features.mean, features.covariance).factor
    torch.testing.assert_close(factor @ factor.T, features.covariance, rtol=1e-6, atol=1e-12)


def test_a_subset_of_rows_does_not_replace_mean_and_covariance() -> None:
    complete, other = FeatureSet.of(random(300, 20)), FeatureSet.of(random(200, 20, seed=1))
    with_few_rows = FeatureSet(300, complete.mean, complete.covariance, complete.require_rows()[:9])
    assert distance(with_few_rows, other) == pytest.approx(distance(complete, other), rel=1e-12)


def test_only_mean_and_covariance_are_required() -> None:
    assert not FrechetDistance.needs_rows
    origin, identity = torch.zeros(3).double(), torch.eye(3).double()
    near, far = gaussian(origin, identity), gaussian(origin + 2, identity)
    assert FrechetDistance(StandIn()).measure(near, far) == {"fd": pytest.approx(12, rel=1e-9)}


def test_the_spatial_distance_requires_spatial_features() -> None:
    assert SpatialFrechetDistance.output == "spatial"
    one, other = FeatureSet.of(random(9, 4)), FeatureSet.of(random(9, 4, seed=1))
    found = SpatialFrechetDistance(Spatial()).measure(one, other)
    assert found == {"sfd": pytest.approx(distance(one, other), rel=1e-12)}
    with pytest.raises(ValueError, match="`features` must have the output 'spatial' for sfid, got stand"):
        SpatialFrechetDistance(StandIn())


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance, PrecisionRecall, DensityCoverage])
def test_a_metric_of_tensors_is_refused(kind: type[Metric]) -> None:
    features = torch.randn(10, 128)
    with pytest.raises(
        ValueError, match=r"measured on two diffusion_lab.FeatureSet, got .* Tensor; .* FeatureSet.of\("
    ):
        kind(FashionCNN()).measure(features, features)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`rows` must be the features of images, \[N, D\], .* \[10, 1, 28, 28\]"):
        FeatureSet.of(torch.zeros(10, 1, 28, 28))


def test_sets_with_features_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="both sets must have features of the same size, got 4 and 5"):
        frechet_distance(FeatureSet.of(random(9, 4)), FeatureSet.of(random(9, 5)))


@pytest.mark.parametrize("size", [0, 1])
def test_a_set_needs_two_images(size: int) -> None:
    with pytest.raises(ValueError, match=f"a set must contain at least 2 images to have a covariance, got {size}"):
        FeatureSet.of(random(size, 4))


def test_missing_features_of_single_images_are_reported() -> None:
    with pytest.raises(ValueError, match="features of single images are required, got only their mean and covariance"):
        gaussian(torch.zeros(2), torch.eye(2)).require_rows()


@pytest.mark.parametrize(
    ("kind", "features", "size", "reference", "name"),
    [
        ("fd", "inception", 50_000, "train", "fid_inception_50k_train"),
        ("sfd", "inception", 10_001, "test", "sfid_inception_10001_test"),
        ("fd", "fashion_cnn", 2_000, "train", "fd_fashion_cnn_2k_train"),
        ("kd", "inception", 50_000, "train", "kid_inception_50k_train"),
        ("kd_std", "inception", 50_000, "train", "kid_std_inception_50k_train"),
        ("kd_std", "dinov2", 2_048, "train", "kd_std_dinov2_2048_train"),
        ("cs", "inception", 500, None, "is_inception_500"),
        ("cs", "fashion_cnn", 500, None, "cs_fashion_cnn_500"),
    ],
)
def test_the_name_contains_features_number_of_images_and_reference(
    kind: str, features: str, size: int, reference: str | None, name: str
) -> None:
    assert full_name(kind, features, size, reference) == name


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-7, 1e-11])
def test_distance_is_exact_for_covariances_with_small_eigenvalues(smallest: float) -> None:
    # Commuting covariances, whose distance is known, rotated so that none is diagonal.
    rotation = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    one = torch.logspace(0, math.log10(smallest), 24, dtype=torch.float64)
    other = 2 * one.flip(0)
    covariances = [(rotation * eigenvalues) @ rotation.T for eigenvalues in (one, other)]
    sets = [gaussian(torch.zeros(24, dtype=torch.float64), covariance) for covariance in covariances]
    expected = float((one.sqrt() - other.sqrt()).square().sum())
    assert float(frechet_distance(*sets)) == pytest.approx(expected, rel=1e-7)


def test_a_distance_of_few_images_is_logged_with_the_reason_once(caplog: pytest.LogCaptureFixture) -> None:
    samples, reference = (FeatureSet.of(random(size, StandIn.num_features)) for size in (3, 400))
    for _ in range(2):
        FrechetDistance(StandIn()).measure(samples, reference)
    assert (
        caplog.text.count("fid (features=stand_in) for 3 images is biased upwards, because so few images do not ") == 1
    )

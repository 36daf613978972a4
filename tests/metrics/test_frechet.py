import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import FrechetDistance, SpatialFrechetDistance, frechet_distance
from diffusion_lab.metrics.metric import full_name
from support.fake_features import Spatial, StandIn


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(mean: Tensor, covariance: Tensor) -> FeatureSet:
    """A set of which the moments alone are known."""
    return FeatureSet(1000, mean, covariance)


def distance(one: FeatureSet, other: FeatureSet) -> float:
    return float(frechet_distance(one, other))


@given(st.lists(st.tuples(*[st.floats(-2, 2), st.floats(0, 3)] * 2), min_size=1, max_size=6))
def test_distance_of_independent_gaussians_is_that_of_their_means_and_deviations(
    dimensions: list[tuple[float, float, float, float]],
) -> None:
    mean_1, std_1, mean_2, std_2 = torch.tensor(dimensions, dtype=torch.float64).T
    found = distance(gaussian(mean_1, (std_1**2).diag()), gaussian(mean_2, (std_2**2).diag()))
    expected = (mean_1 - mean_2).square().sum() + (std_1 - std_2).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


def test_distance_of_commuting_covariances_is_that_of_their_roots() -> None:
    basis = torch.linalg.qr(random(7, 7))[0]
    roots_1, roots_2 = torch.arange(1, 8).double(), torch.tensor([3.0, 0.5, 2.0, 5.0, 1.0, 4.0, 0.1]).double()
    covariances = [basis @ (roots**2).diag() @ basis.T for roots in (roots_1, roots_2)]
    means = torch.zeros(7).double(), torch.ones(7).double()
    found = distance(*(gaussian(*moments) for moments in zip(means, covariances, strict=True)))
    assert found == pytest.approx(7 + float((roots_1 - roots_2).square().sum()), rel=1e-9)


@pytest.mark.parametrize("size", [9, 300])
def test_distance_of_a_set_to_itself_is_0_and_never_less(size: int) -> None:
    for seed in range(6):
        whole = FeatureSet.of(random(size, 20, seed=seed).float())
        assert 0 <= distance(whole, whole) < 1e-12
        known = gaussian(whole.mean, whole.covariance)
        assert 0 <= distance(known, known) < 1e-6


@pytest.mark.parametrize(("size_1", "size_2"), [(9, 13), (13, 9), (9, 300), (300, 9), (300, 200)])
def test_distance_of_fewer_images_than_features_is_exact(size_1: int, size_2: int) -> None:
    features_1, features_2 = random(size_1, 40), 1.5 * random(size_2, 40, seed=1) + 0.2
    roots_1, roots_2 = (f.sub(f.mean(0)).div(math.sqrt(len(f) - 1)) for f in (features_1, features_2))
    # Covariances are roots' roots: then tr (C1 C2)^(1/2) is the sum of the singular values of roots_1 roots_2'.
    overlap = torch.linalg.svdvals(roots_1 @ roots_2.T).sum()
    expected = (features_1.mean(0) - features_2.mean(0)).square().sum()
    expected += roots_1.square().sum() + roots_2.square().sum() - 2 * overlap
    sets = (FeatureSet.of(features_1), FeatureSet.of(features_2))
    assert distance(*sets) == pytest.approx(float(expected), rel=1e-12)
    # Moments alone are enough up to the root of their rounding.
    assert distance(*(gaussian(s.mean, s.covariance) for s in sets)) == pytest.approx(float(expected), rel=2e-7)


def test_distance_without_any_spread_is_that_of_the_means() -> None:
    nothing, origin = torch.zeros(4, 4).double(), torch.zeros(4).double()
    assert distance(gaussian(origin, nothing), gaussian(origin + 3, nothing)) == pytest.approx(36, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")  # in pytorch-fid
@pytest.mark.parametrize(("size_1", "size_2", "dimensions"), [(300, 200, 12), (70, 66, 64)])
def test_distance_is_that_of_torch_fidelity_and_pytorch_fid(size_1: int, size_2: int, dimensions: int) -> None:
    """With far more images than features, and with hardly more."""
    one, other = random(size_1, dimensions).float(), (1.5 * random(size_2, dimensions, seed=1) + 0.2).float()
    found = FrechetDistance(StandIn()).measure(FeatureSet.of(one), FeatureSet.of(other))["fd"]
    theirs = [fid_features_to_statistics(features.double()) for features in (one, other)]
    assert found == pytest.approx(fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID], rel=1e-6)
    statistics = [(np.mean(rows, axis=0), np.cov(rows, rowvar=False)) for rows in (one.numpy(), other.numpy())]
    assert found == pytest.approx(calculate_frechet_distance(*statistics[0], *statistics[1]), rel=1e-5)


def test_moments_are_float64() -> None:
    """In float32 the covariance of features far from 0 would be rounding alone."""
    rows = 1000 + 0.01 * random(500, 3).float()
    features = FeatureSet.of(rows)
    assert torch.allclose(features.covariance, rows.double().T.cov(), rtol=1e-9, atol=0)
    assert torch.allclose(features.mean, rows.double().mean(0), rtol=1e-12, atol=0)


def test_the_root_is_real_of_a_nearly_singular_covariance() -> None:
    features = FeatureSet.of(torch.cat([random(200, 5), 1e-9 * random(200, 5, seed=1)], dim=1))
    factor = gaussian(features.mean, features.covariance).factor
    torch.testing.assert_close(factor @ factor.T, features.covariance, rtol=1e-6, atol=1e-12)


def test_some_features_of_a_larger_set_do_not_stand_for_all_of_it() -> None:
    whole, other = FeatureSet.of(random(300, 20)), FeatureSet.of(random(200, 20, seed=1))
    sampled = FeatureSet(300, whole.mean, whole.covariance, whole.require_rows()[:9])
    assert distance(sampled, other) == pytest.approx(distance(whole, other), rel=1e-12)


def test_moments_are_all_that_it_asks_for() -> None:
    assert not FrechetDistance.needs_rows
    origin, spread = torch.zeros(3).double(), torch.eye(3).double()
    near, far = gaussian(origin, spread), gaussian(origin + 2, spread)
    assert FrechetDistance(StandIn()).measure(near, far) == {"fd": pytest.approx(12, rel=1e-9)}


def test_spatial_features_have_a_distance_of_their_own() -> None:
    assert SpatialFrechetDistance.output == "spatial"
    one, other = FeatureSet.of(random(9, 4)), FeatureSet.of(random(9, 4, seed=1))
    found = SpatialFrechetDistance(Spatial()).measure(one, other)
    assert found == {"sfd": pytest.approx(distance(one, other), rel=1e-12)}
    with pytest.raises(
        ValueError, match="features must have the output 'spatial' for SpatialFrechetDistance, got stand"
    ):
        SpatialFrechetDistance(StandIn())


def test_sets_of_unlike_features_are_refused() -> None:
    with pytest.raises(ValueError, match="features must be alike in both sets, got 4 and 5"):
        frechet_distance(FeatureSet.of(random(9, 4)), FeatureSet.of(random(9, 5)))


@pytest.mark.parametrize("size", [0, 1])
def test_a_set_needs_two_images(size: int) -> None:
    with pytest.raises(ValueError, match=f"a set must hold at least 2 images to have a covariance, got {size}"):
        FeatureSet.of(random(size, 4))


def test_features_of_single_images_are_asked_for_only_where_they_are_known() -> None:
    with pytest.raises(ValueError, match="features of single images must be known, got their mean and covariance"):
        gaussian(torch.zeros(2), torch.eye(2)).require_rows()


@pytest.mark.parametrize(
    ("kind", "features", "size", "reference", "name"),
    [
        ("fd", "inception", 50_000, "train", "fid_inception_50k_train"),
        ("sfd", "inception", 10_001, "test", "sfid_inception_10001_test"),
        ("fd", "fashion_cnn", 2_000, "train", "fd_fashion_cnn_2k_train"),
        ("kid_std", "dinov2", 2_048, "train", "kid_std_dinov2_2048_train"),
        ("is", "inception", 500, None, "is_inception_500"),
    ],
)
def test_the_name_says_which_features_how_many_images_and_beside_what(
    kind: str, features: str, size: int, reference: str | None, name: str
) -> None:
    assert full_name(kind, features, size, reference) == name


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-7, 1e-11])
def test_the_root_of_covariances_of_full_rank_is_exact_however_small_their_smallest_spread(smallest: float) -> None:
    # Commuting covariances, whose distance is known, turned so that none is diagonal.
    turn = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    one = torch.logspace(0, math.log10(smallest), 24, dtype=torch.float64)
    other = 2 * one.flip(0)
    sets = [FeatureSet(1000, torch.zeros(24, dtype=torch.float64), (turn * spread) @ turn.T) for spread in (one, other)]
    expected = float((one.sqrt() - other.sqrt()).square().sum())
    assert float(frechet_distance(*sets)) == pytest.approx(expected, rel=1e-7)

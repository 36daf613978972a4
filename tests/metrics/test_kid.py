import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.kid import KernelDistance
from support.fake_features import StandIn


def features(size: int, seed: int, shift: float = 0.0) -> FeatureSet:
    return FeatureSet.of(torch.randn(size, 12, generator=torch.Generator().manual_seed(seed)) + shift)


def test_the_distance_of_one_subset_is_the_unbiased_estimate() -> None:
    one, other = features(30, 0), features(30, 1, 0.5)
    found = KernelDistance(StandIn(), num_subsets=1).measure(one, other)["kd"]
    x, y = (s.require_rows().double().numpy() for s in (one, other))
    kernels = [(a @ b.T / 12 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = sum((kernel.sum() - np.trace(kernel)) / (30 * 29) for kernel in kernels[:2])
    assert found == pytest.approx(within - 2 * kernels[2].mean(), rel=1e-4)


def test_sets_of_the_same_distribution_have_distance_0_within_the_standard_error() -> None:
    found = KernelDistance(StandIn(), num_subsets=50, subset_size=200).measure(features(1000, 0), features(1000, 1))
    assert abs(found["kd"]) < 3 * found["kd_std"] / 50**0.5 + 1e-3
    assert found["kd_std"] > 0
    far = KernelDistance(StandIn(), num_subsets=50, subset_size=200).measure(features(1000, 0), features(1000, 1, 0.3))
    assert far["kd"] > 10 * abs(found["kd"])


def test_distance_agrees_with_torch_fidelity_and_does_not_depend_on_global_random_states() -> None:
    one, other = features(120, 0), features(90, 1, 0.2)
    expected = kid_features_to_metric(
        one.require_rows(), other.require_rows(), kid_subsets=70, kid_subset_size=50, verbose=False
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found = KernelDistance(StandIn(), num_subsets=70, subset_size=50).measure(one, other)
        assert list(found.values()) == list(expected.values())


def test_subsets_are_at_most_as_large_as_the_smaller_set() -> None:
    one, other = features(40, 0), features(25, 1)
    assert KernelDistance(StandIn()).measure(one, other) == KernelDistance(StandIn(), subset_size=25).measure(
        one, other
    )


@pytest.mark.parametrize(("name", "value", "minimum"), [("num_subsets", 0, 1), ("subset_size", 1, 2)])
def test_settings_below_their_minimum_are_refused(name: str, value: int, minimum: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {minimum}, got {value}"):
        KernelDistance(StandIn(), **{name: value})

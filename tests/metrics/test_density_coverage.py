import math

import pytest
import torch
from torch import Tensor

from diffusion_lab.metrics import density_coverage
from diffusion_lab.metrics.density_coverage import DensityCoverage
from diffusion_lab.metrics.feature_set import FeatureSet
from support.fake_features import StandIn


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, 12, generator=torch.Generator().manual_seed(seed))


def measured(samples: Tensor, reference: Tensor) -> dict[str, float]:
    return DensityCoverage(StandIn()).measure(FeatureSet.of(samples), FeatureSet.of(reference))


def expected_values(samples: Tensor, reference: Tensor, neighbors: int) -> dict[str, float]:
    within = (reference[:, None].double() - reference[None].double()).norm(dim=2).sort(dim=1).values
    across = (reference[:, None].double() - samples[None].double()).norm(dim=2)
    inside = across < within[:, neighbors : neighbors + 1]
    density = inside.double().sum(0).div(neighbors).mean()
    return {"density": float(density), "coverage": float(inside.any(1).double().mean())}


def test_values_agree_with_the_formulas_of_the_paper_for_any_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = 0.8 * normal(70), normal(90, 1)
    expected = expected_values(samples, reference, 5)
    assert 0 < expected["coverage"] < 1
    assert measured(samples, reference) == pytest.approx(expected, rel=1e-12)
    # Far from the origin, differences of squared norms are too inexact in float32 to order neighbors.
    far = 20 + 0.01 * samples, 20 + 0.01 * reference
    assert measured(*far) == pytest.approx(expected_values(*far, 5), rel=1e-12)
    monkeypatch.setattr(density_coverage, "BATCH_SIZE", 7)
    assert measured(samples, reference) == pytest.approx(expected, rel=1e-12)


def test_a_set_with_itself_has_density_and_coverage_1() -> None:
    """Each open ball contains its center and the four nearest images; the fifth is on its border."""
    assert measured(normal(300), normal(300)) == {"density": 1.0, "coverage": 1.0}


def test_sets_of_one_distribution_have_the_expected_values_of_the_paper() -> None:
    """Density 1; coverage 1 minus the probability that the k nearest neighbors of a real image are real (lemma 2)."""
    found = measured(normal(500), normal(1500, 1))
    uncovered = math.prod((1500 - j) / (500 + 1500 - j) for j in range(1, 6))
    assert found["coverage"] == pytest.approx(1 - uncovered, abs=0.02)
    assert found["density"] == pytest.approx(1, abs=0.1)


def test_an_outlier_of_the_data_adds_at_most_its_own_ball() -> None:
    """The ball is so large that all samples in it would be correct for precision."""
    data = torch.cat([normal(300, 1), torch.full((1, 12), 1000.0)])
    plain, disturbed = measured(normal(200), normal(300, 1)), measured(normal(200), data)
    assert 0 <= disturbed["density"] - plain["density"] <= 200 / (5 * 200)


def test_samples_far_from_the_data_have_density_and_coverage_0() -> None:
    assert measured(normal(50) + 100, normal(50)) == {"density": 0.0, "coverage": 0.0}


def test_too_few_images_are_refused() -> None:
    assert DensityCoverage(StandIn()).min_images == 6
    with pytest.raises(ValueError, match="the reference must contain more than num_neighbors=5 images, got 5"):
        measured(normal(9), normal(5))
    with pytest.raises(ValueError, match="num_neighbors must be at least 1, got 0"):
        DensityCoverage(StandIn(), 0)

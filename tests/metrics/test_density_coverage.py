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


def by_hand(samples: Tensor, reference: Tensor, neighbours: int) -> dict[str, float]:
    within = (reference[:, None].double() - reference[None].double()).norm(dim=2).sort(dim=1).values
    across = (reference[:, None].double() - samples[None].double()).norm(dim=2)
    inside = across < within[:, neighbours : neighbours + 1]
    density = inside.double().sum(0).div(neighbours).mean()
    return {"density": float(density), "coverage": float(inside.any(1).double().mean())}


def test_it_is_what_the_paper_says_whatever_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = 0.8 * normal(70), normal(90, 1)
    expected = by_hand(samples, reference, 5)
    assert 0 < expected["coverage"] < 1
    assert measured(samples, reference) == pytest.approx(expected, rel=1e-12)
    # Far from the origin float32 could not tell neighbours by differences of squared lengths.
    far = 20 + 0.01 * samples, 20 + 0.01 * reference
    assert measured(*far) == pytest.approx(by_hand(*far, 5), rel=1e-12)
    monkeypatch.setattr(density_coverage, "BATCH_SIZE", 7)
    assert measured(samples, reference) == pytest.approx(expected, rel=1e-12)


def test_a_set_with_itself_has_density_and_coverage_1() -> None:
    """Each open ball holds its own centre and the four nearest; the fifth is its border."""
    assert measured(normal(300), normal(300)) == {"density": 1.0, "coverage": 1.0}


def test_sets_of_one_distribution_have_the_papers_expectation() -> None:
    """Density 1; coverage all but the chance that of all others the k nearest to a real image are real (lemma 2)."""
    found = measured(normal(500), normal(1500, 1))
    uncovered = math.prod((1500 - j) / (500 + 1500 - j) for j in range(1, 6))
    assert found["coverage"] == pytest.approx(1 - uncovered, abs=0.02)
    assert found["density"] == pytest.approx(1, abs=0.1)


def test_an_outlier_of_the_data_adds_its_own_ball_at_most() -> None:
    """Which is so wide that precision would count everything in it as good."""
    data = torch.cat([normal(300, 1), torch.full((1, 12), 1000.0)])
    plain, disturbed = measured(normal(200), normal(300, 1)), measured(normal(200), data)
    assert 0 <= disturbed["density"] - plain["density"] <= 200 / (5 * 200)


def test_samples_far_away_have_neither() -> None:
    assert measured(normal(50) + 100, normal(50)) == {"density": 0.0, "coverage": 0.0}


def test_too_few_images_are_refused() -> None:
    assert DensityCoverage(StandIn()).min_images == 6
    with pytest.raises(ValueError, match="reference must hold more than num_neighbours=5 images, got 5"):
        measured(normal(9), normal(5))
    with pytest.raises(ValueError, match="num_neighbours must be at least 1, got 0"):
        DensityCoverage(StandIn(), 0)

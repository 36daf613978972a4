import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lab.fingerprints import describe
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.inception_score import InceptionScore
from support.fake_features import StandIn


def score(logits: Tensor, num_splits: int = 1) -> dict[str, float]:
    samples = FeatureSet.of(logits)
    return InceptionScore(StandIn(), num_splits).measure(samples, samples)


def test_confident_and_balanced_predictions_score_the_number_of_classes() -> None:
    logits = 100 * torch.eye(5).repeat(20, 1)
    assert score(logits)["cs"] == pytest.approx(5, rel=1e-6)


def test_constant_and_uniform_predictions_score_1() -> None:
    assert score(torch.tensor([[9.0, 0, 0]]).repeat(20, 1))["cs"] == pytest.approx(1, rel=1e-9)
    assert score(torch.zeros(20, 5))["cs"] == pytest.approx(1, rel=1e-9)


def test_the_score_of_two_classes_is_known_in_closed_form() -> None:
    p = 0.9
    logits = torch.tensor([[p, 1 - p], [1 - p, p]]).log().repeat(10, 1)
    divergence = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert score(logits)["cs"] == pytest.approx(math.exp(divergence), rel=1e-6)


def test_the_score_requires_logits_and_no_reference() -> None:
    assert (InceptionScore.output, InceptionScore.needs_reference) == ("logits", False)


def test_each_split_requires_two_images_and_the_score_of_few_means_little() -> None:
    metric = InceptionScore(StandIn(), 10)
    assert metric.min_images == 20
    assert score(torch.eye(10) * 50, 10)["cs"] == pytest.approx(1.0)  # any single image has the score 1
    assert metric.caution(1000) is None
    assert str(metric.caution(999)).startswith(
        "means little: each of the 10 splits has 99 images, and the score of a split is at"
    )
    with pytest.raises(ValueError, match="samples must contain at least num_splits=10 images, got 9"):
        score(torch.zeros(9, 5), 10)
    with pytest.raises(ValueError, match="num_splits must be at least 1, got 0"):
        InceptionScore(StandIn(), 0)


def test_the_splits_do_not_depend_on_global_random_states() -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(score(logits, 5))
    assert found[0] == found[1]
    assert found[0]["cs_std"] > 0


def evaluator_score(logits: Tensor, split_size: int) -> list[float]:
    """Return the scores of the parts, computed as in compute_inception_score of Dhariwal & Nichol (2021), code."""
    exponentials = np.exp(logits.double().numpy())
    predictions = exponentials / exponentials.sum(axis=1, keepdims=True)
    scores = []
    for start in range(0, len(predictions), split_size):
        part = predictions[start : start + split_size]
        divergence = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        scores.append(float(np.exp(np.mean(np.sum(divergence, 1)))))
    return scores


@pytest.mark.parametrize(("num_images", "num_parts"), [(150, 3), (123, 3), (40, 1)])
def test_parts_of_consecutive_samples_have_the_scores_of_the_adm_evaluator(num_images: int, num_parts: int) -> None:
    logits = torch.randn(num_images, 7, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 7)
    expected = evaluator_score(logits, 50)
    samples = FeatureSet.of(logits)
    found = InceptionScore(StandIn(), split_size=50).measure(samples, samples)
    assert len(expected) == num_parts
    assert found == pytest.approx({"cs_ordered": np.mean(expected), "cs_ordered_std": np.std(expected)}, abs=1e-9)


def test_a_single_part_has_the_score_of_torch_fidelity() -> None:
    logits = torch.randn(150, 7, generator=torch.Generator().manual_seed(0))
    samples = FeatureSet.of(logits)
    found = InceptionScore(StandIn(), split_size=150).measure(samples, samples)
    assert found["cs_ordered"] == pytest.approx(score(logits, num_splits=1)["cs"], rel=1e-6)
    assert found["cs_ordered_std"] == 0


def test_the_order_of_the_samples_determines_the_parts() -> None:
    logits = 50 * torch.eye(2).repeat_interleave(100, dim=0)  # each part of 100 consecutive samples has one class
    samples = FeatureSet.of(logits)
    in_order = InceptionScore(StandIn(), split_size=100).measure(samples, samples)
    assert in_order["cs_ordered"] == pytest.approx(1)
    assert score(logits, num_splits=2)["cs"] > 1.9  # shuffled


def test_fingerprints_tell_the_two_kinds_of_parts_apart() -> None:
    shuffled, ordered = InceptionScore(StandIn()), InceptionScore(StandIn(), split_size=5000)
    assert describe(shuffled, omit=("features",)) == {"name": "InceptionScore", "num_splits": 10}
    expected = {"name": "InceptionScore", "num_splits": 11, "split_size": 5000}
    assert describe(ordered.for_sizes(50_001, 0), omit=("features",)) == expected
    assert shuffled.for_sizes(50_001, 0) is shuffled


def test_a_small_last_part_is_noted_and_parts_need_an_image() -> None:
    metric = InceptionScore(StandIn(), split_size=5000)
    assert [metric.caution(count) for count in (50_000, 5000, 7500)] == [None] * 3
    assert "the last split has 1 images" in str(metric.caution(50_001))
    assert "the last split has 2,000 images" in str(metric.caution(2000))
    assert metric.min_images == 2
    with pytest.raises(ValueError, match="split_size must be a whole number of at least 1, got 0"):
        InceptionScore(StandIn(), split_size=0)

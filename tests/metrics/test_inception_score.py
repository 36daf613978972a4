import math

import numpy as np
import pytest
import torch
from torch import Tensor

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

"""Copies are found, held-out images are not taken for copies, and the statistics agree with direct implementations."""

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]
from torch import Tensor

from diffusion_lab.metrics.cells import assign_cells, cell_centers
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.memorization import Memorization
from diffusion_lab.randomness import permutation
from support.fake_features import StandIn

NUM_CLUSTERS = 6


def clustered(size: int, seed: int, dimensions: int = 12) -> Tensor:
    """Features of images of one distribution: clusters of different spread."""
    generator = torch.Generator().manual_seed(seed)
    cluster = torch.randint(NUM_CLUSTERS, (size,), generator=generator)
    centers = 4 * torch.randn(NUM_CLUSTERS, dimensions, generator=torch.Generator().manual_seed(99))
    spread = torch.linspace(0.5, 1.5, NUM_CLUSTERS)[cluster, None]
    return centers[cluster] + spread * torch.randn(size, dimensions, generator=generator)


TRAINING, HELD_OUT = clustered(3000, 0), clustered(2000, 1)


def measured(samples: Tensor, training: Tensor = TRAINING, held_out: Tensor = HELD_OUT, **settings: Any) -> Any:
    reference = replace(FeatureSet.of(training), held_out=held_out)
    return Memorization(StandIn(), **settings).measure(FeatureSet.of(samples), reference)


def test_copies_are_caught_new_images_are_not_and_noisy_copies_are_in_between() -> None:
    copies, noise = TRAINING[:500], torch.randn(500, 12, generator=torch.Generator().manual_seed(5))
    found = [measured(copies + scale * noise) for scale in (0, 0.1, 0.25, 0.35, 1.0)]
    shares = [values["memorized_share"] for values in found]
    assert shares[:2] == [1, 1]
    assert shares == sorted(shares, reverse=True)
    assert 0.05 < shares[3] < shares[2] < 0.99
    assert shares[4] < 0.02
    scores = [values["c_t"] for values in found]
    assert scores == sorted(scores)
    assert scores[0] < -8
    assert [values["authenticity"] for values in found[:2]] == [0, 0]
    assert found[4]["authenticity"] == pytest.approx(found[4]["authenticity_held_out"], abs=0.2)
    assert all(values["memorized_share_held_out"] == found[0]["memorized_share_held_out"] <= 0.02 for values in found)


def test_one_percent_of_new_images_undercut_the_threshold_whatever_the_number_of_held_out_images() -> None:
    """The expectation is floor(n / 100) / n for n = half + 1 distances."""
    training = clustered(800, 0)
    for num_held_out, expected in ((2000, 10 / 1001), (1000, 5 / 501)):
        shares = [
            measured(clustered(1000, 100 + k), training, clustered(num_held_out, 200 + k))["memorized_share"]
            for k in range(8)
        ]
        assert np.mean(shares) == pytest.approx(expected, abs=0.003)


def test_c_t_of_one_half_of_the_held_out_images_against_the_other_is_0_within_its_error() -> None:
    found = [measured(TRAINING[:50], held_out=clustered(1200, 300 + k)) for k in range(12)]
    scores = np.array([values["c_t_held_out"] / values["c_t_held_out_std"] for values in found])
    assert abs(scores.mean()) < 3 / math.sqrt(12)
    assert 0.5 < scores.std() < 1.6
    assert abs(scores).max() < 3.5


def z_u(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Equation of Meehan et al. with the U of SciPy."""
    u, size = mannwhitneyu(ours, theirs, alternative="less").statistic, len(ours) * len(theirs)
    return float((u - size / 2) / math.sqrt(size * (len(ours) + len(theirs) + 1) / 12))


def test_values_agree_with_direct_implementations() -> None:
    training, held_out, samples = clustered(300, 2), clustered(240, 3), clustered(260, 4) * 0.98
    samples[:40] = training[:40]  # ties
    values = measured(samples, training, held_out, num_cells=5)
    calibration, other = (held_out[half].double() for half in np.array_split(permutation(0, 3, 240), 2))
    sets = {"": samples.double(), "_held_out": other}
    distances = {name: torch.cdist(each, training.double()) for name, each in {**sets, "_half": calibration}.items()}
    nearest = {name: each.min(dim=1).values.numpy() for name, each in distances.items()}
    nearest[""][:40] = 0
    centers = cell_centers(training, 5)
    cells = {name: assign_cells(each, centers).numpy() for name, each in {**sets, "_half": calibration}.items()}
    spacing = torch.cdist(training.double(), training.double()).fill_diagonal_(torch.inf).min(dim=1).values
    threshold = np.sort(nearest["_half"])[math.floor(0.01 * 121) - 1]
    assert values["memorized_threshold"] == pytest.approx(threshold, rel=1e-9)
    for name in sets:
        weights, scores = [], []
        for cell in range(5):
            ours, theirs = nearest[name][cells[name] == cell], nearest["_half"][cells["_half"] == cell]
            if min(len(ours), len(theirs)) >= 20:
                weights.append(len(theirs))
                scores.append(z_u(ours, theirs))
        assert 2 <= len(weights) < 5
        assert values[f"c_t{name}"] == pytest.approx(np.average(scores, weights=weights), abs=1e-9)
        std = math.sqrt(sum(weight**2 for weight in weights)) / sum(weights)
        assert values[f"c_t{name}_std"] == pytest.approx(std, abs=1e-9)
        authentic = nearest[name] > spacing[distances[name].argmin(dim=1)].numpy()
        assert values[f"authenticity{name}"] == pytest.approx(authentic.mean(), abs=1e-9)
        assert values[f"memorized_share{name}"] == pytest.approx((nearest[name] < threshold).mean(), abs=1e-9)
    assert 40 / 260 <= values["memorized_share"] < 0.5


def test_cells_are_the_clusters_of_the_training_images_whatever_their_order() -> None:
    centers = cell_centers(TRAINING, NUM_CLUSTERS)
    found = assign_cells(TRAINING, centers)
    within = (TRAINING.double() - centers[found]).square().sum(1).mean()
    assert float(within) == pytest.approx(12 * float(torch.linspace(0.5, 1.5, NUM_CLUSTERS).square().mean()), rel=0.1)
    means = torch.stack([TRAINING[found == k].double().mean(0) for k in range(NUM_CLUSTERS)])
    torch.testing.assert_close(centers, means)


def test_a_sampler_with_few_modes_leaves_cells_out_and_c_t_is_nan_without_any_cell() -> None:
    one_mode = TRAINING[:1].repeat(100, 1)
    assert measured(one_mode, num_cells=NUM_CLUSTERS)["c_t"] < -5
    assert measured(one_mode, num_cells=NUM_CLUSTERS)["c_t_std"] == 1
    assert math.isnan(measured(one_mode, num_cells=50, min_in_cell=101, held_out=clustered(300, 1))["c_t"])


def test_the_nearest_pairs_come_first_with_the_training_image_and_the_threshold() -> None:
    samples = clustered(200, 7)
    samples[[13, 150]] = TRAINING[[2001, 40]]
    reference = replace(FeatureSet.of(TRAINING), held_out=HELD_OUT)
    values, pairs = Memorization(StandIn()).measure_with_pairs(FeatureSet.of(samples), reference)
    assert [(pair.sample, pair.training, pair.distance) for pair in pairs[:2]] == [(13, 2001, 0), (150, 40, 0)]
    assert {pair.threshold for pair in pairs} == {values["memorized_threshold"]}
    assert len(pairs) == 48
    assert all(one.distance <= other.distance for one, other in pairwise(pairs))


@pytest.mark.parametrize(
    ("num_samples", "num_held_out", "given", "used"),
    [(50_000, 10_000, None, 50), (2000, 1000, None, 5), (300, 10_000, None, 3), (20, 40, None, 1), (300, 900, 7, 7)],
)
def test_the_number_of_cells_follows_from_the_sizes_unless_it_is_given(
    num_samples: int, num_held_out: int, given: int | None, used: int
) -> None:
    assert Memorization(StandIn(), num_cells=given).for_sizes(num_samples, num_held_out).num_cells == used


def test_sets_and_settings_that_do_not_fit_are_refused() -> None:
    for settings, message in (
        ({"share": 0.6}, "share must be in (0, 0.5), got 0.6."),
        ({"num_cells": 0}, "num_cells must be at least 1, got 0."),
        ({"min_in_cell": 0}, "min_in_cell must be at least 1, got 0."),
        ({"held_out": HELD_OUT[:39]}, "`reference` must have at least 40 held-out images, got 39."),
        ({"training": TRAINING[:, :5]}, "all images must have the same number of features, got 5 and 12."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            measured(HELD_OUT, **settings)
    with pytest.raises(ValueError, match="`reference` must have at least 40 held-out images, got none"):
        Memorization(StandIn()).measure(FeatureSet.of(HELD_OUT), FeatureSet.of(TRAINING))

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffusion_lab.metrics import cmmd
from diffusion_lab.metrics.cmmd import CMMD
from diffusion_lab.metrics.feature_set import FeatureSet
from support.fake_features import StandIn, StandInForCLIP


def unit(size: int, seed: int, shift: float = 0.0) -> Tensor:
    return normalize(torch.randn(size, 12, generator=torch.Generator().manual_seed(seed)) + shift, dim=1)


def measured(samples: Tensor, reference: Tensor) -> float:
    return CMMD(StandInForCLIP()).measure(FeatureSet.of(samples), FeatureSet.of(reference))["cmmd"]


def test_cmmd_is_a_thousand_times_the_squared_mmd_of_the_kernel() -> None:
    x, y = unit(20, 0).double(), unit(30, 1, 0.5).double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a[:, None] - b[None]).square().sum(2) / (2 * 10.0**2)).mean()

    assert measured(x, y) == pytest.approx(1000 * float(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)), rel=1e-9)


def test_cmmd_of_two_points_is_known_in_closed_form() -> None:
    x, y = torch.zeros(2, 12), torch.zeros(2, 12)
    x[:, 0], y[:, 1] = 1, 1
    assert measured(x, y) == pytest.approx(1000 * 2 * (1 - math.exp(-2 / 200)), rel=1e-9)


def test_a_set_has_distance_0_to_itself_and_order_and_batch_size_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = unit(40, 0), unit(50, 1, 0.5)
    assert measured(one, one) == pytest.approx(0, abs=1e-9)
    expected = measured(one, other)
    monkeypatch.setattr(cmmd, "BATCH_SIZE", 7)
    assert measured(other, one.flip(0)) == pytest.approx(expected, rel=1e-9)


def test_features_other_than_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="`features` must be clip for cmmd, got stand_in"):
        CMMD(StandIn())

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.process import (
    CosineSchedule,
    FixedLarge,
    FixedSmall,
    GaussianProcess,
    LearnedDiagonal,
    LearnedRange,
    LinearSchedule,
    Variance,
    split_output,
)

SCHEDULE = CosineSchedule(40)
PROCESS = GaussianProcess(SCHEDULE)


def times(*steps: int) -> Tensor:
    return torch.tensor(steps, dtype=torch.float64) / 40


def log_variance(
    variance: Variance, s: Tensor, t: Tensor, output: Tensor | None = None, process: GaussianProcess = PROCESS
) -> Tensor:
    return variance.log_variance(process, s, t, like=torch.zeros(len(t), 3, 8, 6).double(), output=output)


def test_fixed_large_is_beta() -> None:
    found = log_variance(FixedLarge(), times(*range(1, 40)), times(*range(2, 41)))
    assert found.shape == (39, 1, 1, 1)
    torch.testing.assert_close(found.exp().flatten(), SCHEDULE.betas[1:], rtol=1e-9, atol=0)


def test_fixed_small_is_beta_tilde() -> None:
    found = log_variance(FixedSmall(), times(*range(1, 40)), times(*range(2, 41)))
    assert found.shape == (39, 1, 1, 1)
    noise = 1 - SCHEDULE.alpha_bar
    torch.testing.assert_close(found.exp().flatten(), noise[:-1] / noise[1:] * SCHEDULE.betas[1:], rtol=1e-9, atol=0)


def test_variances_of_a_longer_step_include_all_steps_between() -> None:
    ratio = SCHEDULE.alpha_bar[29] / SCHEDULE.alpha_bar[9]  # from step 30 to step 10
    reduction = (1 - SCHEDULE.alpha_bar[9]) / (1 - SCHEDULE.alpha_bar[29])
    large, small = (log_variance(variance, times(10), times(30)).exp() for variance in (FixedLarge(), FixedSmall()))
    assert float(large) == pytest.approx(float(1 - ratio), rel=1e-9)
    assert float(small) == pytest.approx(float(reduction * (1 - ratio)), rel=1e-9)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge(), LearnedRange(), LearnedDiagonal()], ids=str)
@pytest.mark.parametrize("process", [PROCESS, GaussianProcess(LinearSchedule(40, 0.0, 0.98))], ids=str)
def test_the_last_step_adds_no_noise(variance: Variance, process: GaussianProcess) -> None:
    like = torch.zeros(4, 3, 8, 6).double()
    output = torch.zeros_like(like) if variance.learned else None
    last = variance.std(process, times(0, 0, 0, 8), times(1, 17, 40, 9), like=like, output=output)
    assert last.shape == ((4, 3, 8, 6) if variance.learned else (4, 1, 1, 1))
    assert last[:3].flatten().tolist() == [0.0] * last[:3].numel()
    assert bool((last[3] > 0).all())


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge(), LearnedRange(), LearnedDiagonal()], ids=str)
def test_std_is_the_square_root_of_the_variance(variance: Variance) -> None:
    like = torch.randn(2, 3, 8, 6).double()
    s, t = times(3, 9), times(4, 30)
    found = log_variance(variance, s, t, like)
    std = variance.std(PROCESS, s, t, like=like, output=like)
    torch.testing.assert_close(std**2, found.exp(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=str)
def test_stds_are_the_std_of_each_step(variance: Variance) -> None:
    s, t = times(30, 9, 0), times(40, 30, 9)
    like = torch.zeros(3, 3, 8, 6).double()
    expected = variance.std(PROCESS, s, t, like=like, output=None).flatten().tolist()
    assert variance.stds(PROCESS, s, t) == expected
    assert expected[2] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge(), LearnedRange(), LearnedDiagonal()], ids=str)
def test_variances_have_the_dtype_of_the_images(variance: Variance, dtype: torch.dtype) -> None:
    like = torch.zeros(2, 3, 8, 6, dtype=dtype)
    for function in (variance.log_variance, variance.std):
        assert function(PROCESS, times(0, 3), times(1, 4), like=like, output=like).dtype == dtype


def test_fixed_variances_for_s_0_are_the_small_variance_of_the_following_step() -> None:
    second = math.log((1 - SCHEDULE.alpha_bar[0]) / (1 - SCHEDULE.alpha_bar[1]) * SCHEDULE.betas[1])
    for variance in (FixedSmall(), FixedLarge()):
        assert float(log_variance(variance, times(0), times(1))) == pytest.approx(second, rel=1e-9)


def test_learned_range_interpolates_geometrically_from_small_to_large() -> None:
    s, t = times(1, 8, 39), times(2, 30, 40)
    small, large = log_variance(FixedSmall(), s, t), log_variance(FixedLarge(), s, t)
    for value, expected in ((-1.0, small), (1.0, large), (0.0, (small + large) / 2), (3.0, 2 * large - small)):
        output = torch.full((3, 3, 8, 6), value).double()
        found = log_variance(LearnedRange(), s, t, output)
        torch.testing.assert_close(found, expected.expand_as(output), rtol=1e-12, atol=1e-12)
    middle = log_variance(LearnedRange(), s, t, torch.zeros(3, 3, 8, 6).double()).exp()
    torch.testing.assert_close(middle, (small.exp() * large.exp()).sqrt().expand(3, 3, 8, 6), rtol=1e-9, atol=0)


def test_learned_range_for_s_0_is_from_the_small_variance_of_the_following_step_to_beta() -> None:
    output = torch.tensor([-1.0, 1.0]).double().view(2, 1, 1, 1).expand(2, 3, 8, 6)
    found = log_variance(LearnedRange(), times(0, 0), times(1, 1), output)[:, 0, 0, 0].tolist()
    second = (1 - SCHEDULE.alpha_bar[0]) / (1 - SCHEDULE.alpha_bar[1]) * SCHEDULE.betas[1]
    assert found == pytest.approx([math.log(second), math.log(SCHEDULE.betas[0])], rel=1e-9)


@given(st.floats(-20, 5))
def test_learned_diagonal_is_the_network_output(value: float) -> None:
    output = torch.full((2, 3, 8, 6), value).double()
    assert torch.equal(log_variance(LearnedDiagonal(), times(0, 3), times(1, 4), output), output)


@pytest.mark.parametrize("variance", [LearnedRange(), LearnedDiagonal()], ids=str)
def test_a_learned_variance_without_a_variance_output_is_rejected(variance: Variance) -> None:
    with pytest.raises(ValueError, match=r"`variance` must be FixedSmall or FixedLarge .* for a network without"):
        log_variance(variance, times(3), times(4))
    for out_channels in (3, 5, 12):
        with pytest.raises(
            ValueError, match=rf"`out_channels` of the network must be 6 .* the 3 channels .*, got {out_channels};"
        ):
            variance.require(3, out_channels)


def test_networks_with_suitable_channels_are_accepted() -> None:
    for learned in (LearnedRange(), LearnedDiagonal()):
        assert learned.learned
        learned.require(3, 6)
        learned.require(1, 2)
    for fixed in (FixedSmall(), FixedLarge()):
        assert not fixed.learned
        fixed.require(3, 3)


def test_an_output_of_twice_the_channels_is_split_into_prediction_and_variance() -> None:
    output = torch.randn(5, 6, 8, 4)
    prediction, variance_output = split_output(output, channels=3)
    assert variance_output is not None
    assert torch.equal(prediction, output[:, :3])
    assert torch.equal(variance_output, output[:, 3:])
    prediction, variance_output = split_output(output, channels=6)
    assert prediction is output
    assert variance_output is None


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge(), LearnedRange(), LearnedDiagonal()], ids=str)
def test_variances_are_equal_by_value_and_immutable(variance: Variance) -> None:
    assert variance == type(variance)()
    with pytest.raises(FrozenInstanceError):
        variance.learned = True  # type: ignore[misc]

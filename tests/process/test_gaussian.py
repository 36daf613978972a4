import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    GaussianProcess,
    LinearScaledSchedule,
    LinearSchedule,
    NoiseSchedule,
    TableSchedule,
    weighted_sum,
    widen,
)
from support.schedule_examples import CONTINUOUS, some_times

T = 20
SCHEDULE = CosineSchedule(T)
PROCESS = GaussianProcess(SCHEDULE)
NOISELESS_FIRST_STEP = GaussianProcess(LinearSchedule(50, 0.0, 0.98))

processes = st.sampled_from(
    [PROCESS, GaussianProcess(LinearSchedule(T, 1e-3, 0.4)), GaussianProcess(LinearSchedule(T))]
)
increasing_steps = st.lists(st.integers(1, T), min_size=2, unique=True).map(sorted)


def times(*steps: int, total: int = T) -> Tensor:
    return torch.tensor(steps, dtype=torch.float64) / total


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_q_sample_is_the_weighted_sum_of_image_and_noise() -> None:
    x_0, noise = torch.randn(3, 2, 8, 6).double(), torch.randn(3, 2, 8, 6).double()
    x_t = PROCESS.q_sample(x_0, times(0, 7, 20), noise)
    alpha_bar = SCHEDULE.alpha_bar[[6, 19]].tolist()
    assert_same(x_t[0], x_0[0])
    assert_same(x_t[1], math.sqrt(alpha_bar[0]) * x_0[1] + math.sqrt(1 - alpha_bar[0]) * noise[1])
    assert_same(x_t[2], math.sqrt(alpha_bar[1]) * x_0[2] + math.sqrt(1 - alpha_bar[1]) * noise[2])


def test_each_image_has_its_own_time_if_there_are_as_many_images_as_columns() -> None:
    x_0, noise, t = torch.randn(6, 3, 8, 6), torch.randn(6, 3, 8, 6), times(1, 4, 7, 11, 15, 20)
    s = times(0, 3, 2, 10, 14, 1)
    batched = (
        PROCESS.q_sample(x_0, t, noise),
        PROCESS.q_step(x_0, s, t, noise),
        PROCESS.q_posterior(x_0, noise, s, t)[0],
        PROCESS.q_posterior(x_0, noise, s, t)[1],
    )
    for k in range(6):
        one = slice(k, k + 1)
        alone = (
            PROCESS.q_sample(x_0[one], t[one], noise[one]),
            PROCESS.q_step(x_0[one], s[one], t[one], noise[one]),
            *PROCESS.q_posterior(x_0[one], noise[one], s[one], t[one]),
        )
        for together, single in zip(batched, alone, strict=True):
            assert torch.equal(together[one], single)


@pytest.mark.parametrize("t", [times(3), times(1, 2, 3, 4, 5, 6), times(1, 2, 3, 4, 5)[:, None], times(3)[0]])
def test_another_number_of_times_than_images_is_rejected(t: Tensor) -> None:
    x = torch.randn(5, 3, 8, 6)
    for call in (
        lambda: PROCESS.coefficients(t, like=x),
        lambda: PROCESS.q_sample(x, t, x),
        lambda: PROCESS.q_step(x, t, t, x),
        lambda: PROCESS.q_posterior(x, x, torch.zeros_like(t), t),
    ):
        with pytest.raises(ValueError, match=r"t must have one value per image, \[5\], got \["):
            call()


def test_noise_of_another_shape_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"noise must have the shape of x_0, \[5, 3, 8, 6\], got \[5, 1, 8, 6\]"):
        PROCESS.q_sample(torch.randn(5, 3, 8, 6), times(1, 2, 3, 4, 5), torch.randn(5, 1, 8, 6))


def test_coefficients_broadcast_against_images_in_their_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        alpha_t, sigma_t = PROCESS.coefficients(times(1, 2, 3, 4, 5), like=torch.zeros(5, 3, 8, 6, dtype=dtype))
        assert (alpha_t.shape, alpha_t.dtype) == ((5, 1, 1, 1), dtype)
        assert (sigma_t.shape, sigma_t.dtype) == ((5, 1, 1, 1), dtype)


def test_transition_of_adjacent_steps_is_sqrt_of_one_minus_beta_and_beta() -> None:
    schedule = CosineSchedule(1000)
    t = times(*range(1, 1001), total=1000)
    scale, variance = GaussianProcess(schedule).transition(t - 1 / 1000, t)
    assert_same(scale, (1 - schedule.betas).sqrt())  # Ho et al. (2020), eq. 2
    torch.testing.assert_close(variance, schedule.betas, rtol=1e-9, atol=0)


@given(processes, increasing_steps)
def test_chained_transitions_equal_the_marginal_of_the_last_time(process: GaussianProcess, steps: list[int]) -> None:
    mean, variance = torch.ones(1).double(), torch.zeros(1).double()
    for s, t in zip([0, *steps], steps, strict=False):
        scale, added = process.transition(times(s), times(t))
        mean, variance = scale * mean, scale**2 * variance + added
    alpha_t, sigma_t = process.schedule.coefficients(times(steps[-1]))
    assert_same(mean, alpha_t)
    assert_same(variance, sigma_t**2)


def test_q_step_is_the_weighted_sum_of_image_and_noise() -> None:
    x_s, noise = torch.randn(3, 2, 8, 6).double(), torch.randn(3, 2, 8, 6).double()
    beta = SCHEDULE.betas[[0, 6, 19]].view(3, 1, 1, 1)
    x_t = PROCESS.q_step(x_s, times(0, 6, 19), times(1, 7, 20), noise)
    assert_same(x_t, (1 - beta).sqrt() * x_s + beta.sqrt() * noise)


def test_images_after_several_q_steps_have_the_mean_and_std_of_the_last_time() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([0.8, -0.5]).view(2, 1, 1, 1).expand(2, 3, 128, 96)
    steps = [(0, 0), (1, 3), (5, 4), (6, 9), (12, 10)]
    for s, t in pairwise(steps):
        x = PROCESS.q_step(x, times(*s), times(*t), torch.randn(x.shape, generator=generator))
    alpha_t, sigma_t = PROCESS.schedule.coefficients(times(12, 10))
    assert x.mean(dim=(1, 2, 3)).tolist() == pytest.approx((alpha_t * torch.tensor([0.8, -0.5])).tolist(), abs=0.01)
    assert x.std(dim=(1, 2, 3)).tolist() == pytest.approx(sigma_t.tolist(), abs=0.01)


def test_posterior_of_neighboring_steps_is_equation_7_of_ho_et_al() -> None:
    schedule = LinearSchedule(T, 1e-3, 0.4)
    beta, alpha_bar = schedule.betas, (1 - schedule.betas).cumprod(0)
    previous = torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
    on_x_0 = previous.sqrt() * beta / (1 - alpha_bar)
    on_x_t = (1 - beta).sqrt() * (1 - previous) / (1 - alpha_bar)
    variance = (1 - previous) / (1 - alpha_bar) * beta

    x_0, x_t = torch.randn(T, 3, 8, 6).double(), torch.randn(T, 3, 8, 6).double()
    mean, found = GaussianProcess(schedule).q_posterior(x_0, x_t, times(*range(T)), times(*range(1, T + 1)))
    assert_same(mean, on_x_0.view(T, 1, 1, 1) * x_0 + on_x_t.view(T, 1, 1, 1) * x_t)
    assert_same(found, variance.view(T, 1, 1, 1))


@given(processes, increasing_steps)
def test_posterior_of_any_two_times_is_bayes_rule(process: GaussianProcess, steps: list[int]) -> None:
    s, t = times(steps[0]), times(steps[-1])
    alpha_s, sigma_s = process.schedule.coefficients(s)
    scale, added = process.transition(s, t)
    precision = 1 / sigma_s**2 + scale**2 / added  # of q(x_s | x_0) q(x_t | x_s) as a function of x_s
    on_x_0, on_x_t, variance = process.posterior_coefficients(s, t)
    assert_same(variance, 1 / precision, 1e-9)
    assert_same(on_x_0, alpha_s / sigma_s**2 / precision, 1e-9)
    assert_same(on_x_t, scale / added / precision, 1e-9)


@given(processes, increasing_steps)
def test_posterior_maps_the_later_marginal_to_the_earlier(process: GaussianProcess, steps: list[int]) -> None:
    s, t = times(*steps[:-1]), times(*steps[1:])
    alpha_s, sigma_s = process.schedule.coefficients(s)
    alpha_t, sigma_t = process.schedule.coefficients(t)
    on_x_0, on_x_t, variance = process.posterior_coefficients(s, t)
    assert_same(on_x_0 + on_x_t * alpha_t, alpha_s)
    assert_same(on_x_t**2 * sigma_t**2 + variance, sigma_s**2)


@pytest.mark.parametrize(
    ("schedule", "second", "last"),
    [
        (LinearSchedule(1000), -9.816725, -3.912024),
        (LinearScaledSchedule(4000), -11.265782, -5.298318),
        (CosineSchedule(1000), -10.734083, -0.001003),
        (CosineSchedule(4000), -12.204537, -0.001001),
    ],
    ids=str,
)
def test_posterior_log_variances_are_the_published_ones_and_the_first_equals_the_second(
    schedule: TableSchedule, second: float, last: float
) -> None:
    steps = schedule.num_timesteps
    s, t = times(0, 1, steps - 1, total=steps), times(1, 2, steps, total=steps)
    log_variance = GaussianProcess(schedule).posterior_log_variance(s, t)
    assert log_variance.dtype == torch.float64
    assert [round(value, 6) for value in log_variance.tolist()] == [second, second, last]


@given(processes, increasing_steps)
def test_log_variances_are_the_logarithms_of_the_variances(process: GaussianProcess, steps: list[int]) -> None:
    s, t = times(*steps[:-1]), times(*steps[1:])
    assert_same(process.posterior_log_variance(s, t).exp(), process.posterior_coefficients(s, t)[2])
    assert_same(process.transition_log_variance(s, t).exp(), process.transition(s, t)[1])


def test_posterior_log_variance_for_s_0_is_that_of_the_following_step() -> None:
    expected = PROCESS.posterior_coefficients(times(9, 19), times(10, 20))[2].log()
    assert_same(PROCESS.posterior_log_variance(times(0, 0), times(9, 19)), expected)


def test_posterior_log_variance_for_s_0_without_a_following_step_is_that_of_the_forward_step() -> None:
    _, sigma_t = SCHEDULE.coefficients(times(20))
    assert_same(PROCESS.posterior_log_variance(times(0), times(20)), 2 * sigma_t.log())
    single = GaussianProcess(LinearSchedule(1, 0.3, 0.3))
    assert float(single.posterior_log_variance(times(0), times(1, total=1))) == pytest.approx(math.log(0.3), rel=1e-9)
    assert float(GaussianProcess(EDMSchedule()).posterior_log_variance(times(0), times(3, total=1))) == pytest.approx(
        math.log(9)
    )


def test_variances_of_0_have_finite_logarithms_in_float32() -> None:
    s, t = times(0, 1, total=50), times(1, 2, total=50)
    for log_variance in (NOISELESS_FIRST_STEP.posterior_log_variance, NOISELESS_FIRST_STEP.transition_log_variance):
        assert bool(log_variance(s, t).float().isfinite().all())
    assert float(NOISELESS_FIRST_STEP.transition_log_variance(s, t)[0]) == pytest.approx(math.log(1e-30))


@pytest.mark.parametrize("process", [GaussianProcess(schedule) for schedule in CONTINUOUS], ids=str)
def test_two_transitions_of_a_continuous_schedule_equal_the_marginal(process: GaussianProcess) -> None:
    s, t = some_times(process.schedule)[:-1], some_times(process.schedule)[1:]
    scale, variance = process.transition(s, t)
    alpha_s, sigma_s = process.schedule.coefficients(s)
    alpha_t, sigma_t = process.schedule.coefficients(t)
    torch.testing.assert_close(scale * alpha_s, alpha_t, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(variance + scale**2 * sigma_s**2, sigma_t**2, rtol=1e-9, atol=0)
    assert bool((variance > 0).all())


def test_the_continuous_process_has_the_interpolated_schedule() -> None:
    assert PROCESS.continuous == GaussianProcess(SCHEDULE.continuous)
    assert PROCESS.continuous is PROCESS.continuous  # built and checked once, not in each step of a sampler
    alpha_t, sigma_t = PROCESS.continuous.coefficients(times(7, 8, total=21), like=torch.zeros(2, 3, 8, 6).double())
    assert_same(alpha_t**2 + sigma_t**2, torch.ones(2, 1, 1, 1).double())


def test_posterior_for_s_0_is_x_0_without_variance() -> None:
    x_0, x_t = torch.randn(5, 3, 8, 6), torch.randn(5, 3, 8, 6)
    mean, variance = PROCESS.q_posterior(x_0, x_t, torch.zeros(5), times(1, 2, 3, 4, 20))
    torch.testing.assert_close(mean, x_0)
    assert variance.flatten().tolist() == [0.0] * 5


def test_posterior_of_a_first_step_without_noise_is_x_0_without_variance() -> None:
    x_0 = torch.randn(3, 2, 8, 6)
    mean, variance = NOISELESS_FIRST_STEP.q_posterior(x_0, x_0, times(0, 0, 1, total=50), times(1, 2, 2, total=50))
    torch.testing.assert_close(mean, x_0)
    assert variance.flatten().tolist() == [0.0] * 3


def test_posteriors_after_a_first_step_without_noise_are_finite() -> None:
    s, t = times(*range(50), total=50), times(*range(1, 51), total=50)
    assert all(bool(value.isfinite().all()) for value in NOISELESS_FIRST_STEP.posterior_coefficients(s, t))


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ([], "strictly decreasing list of numbers above 0, got"),
        ([0.25, 0.5], "strictly decreasing list of numbers above 0, got"),
        ([0.5, 0.5, 0.25], "strictly decreasing list of numbers above 0, got"),
        ([0.5, 0.25, 0.0], "strictly decreasing list of numbers above 0, got"),
        ([0.5, 0.26], "t must be one of 0, 1/20, 2/20, ..., 1 .* got 0.26"),
        ([1.05, 0.5], "t must be one of 0, 1/20, 2/20, ..., 1 .* got 1.05"),
    ],
)
def test_invalid_lists_of_times_are_rejected(invalid: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PROCESS.validate_times(invalid)


def test_lists_of_times_out_of_range_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"t must be in \[0, 80\], got 81"):
        GaussianProcess(EDMSchedule()).validate_times([81.0, 1.0])


@pytest.mark.parametrize("schedule", [CosineSchedule(T), LinearSchedule(T)], ids=str)
def test_decreasing_lists_of_times_are_accepted(schedule: NoiseSchedule) -> None:
    GaussianProcess(schedule).validate_times([1.0, 0.95, 0.5, 0.05])
    GaussianProcess(schedule).validate_times([0.3])


def test_widen_names_the_value_in_its_error() -> None:
    images = torch.zeros(5, 3, 8, 6)
    assert widen(torch.arange(5.0).double(), images).shape == (5, 1, 1, 1)
    with pytest.raises(ValueError, match=r"level must have one value per image, \[5\], got \[6\]"):
        widen(torch.zeros(6), images, name="level")


def test_weighted_sum_accepts_floats_and_one_weight_per_image() -> None:
    x, y = torch.randn(2, 6, 3, 8, 6)
    a, b = torch.rand(2, 6)
    each = torch.cat([weighted_sum(float(a[k]), x[k : k + 1], float(b[k]), y[k : k + 1]) for k in range(6)])
    torch.testing.assert_close(weighted_sum(a, x, b, y), each)


@dataclass(frozen=True)
class Foreign(EDMSchedule):
    """A schedule of another package, whose coefficients are given."""

    given: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = field(kw_only=True)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.given
        return alpha(t), sigma(t)


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        (lambda t: 1 + t, torch.ones_like, "the signal-to-noise ratio of Foreign must not rise with the time, but"),
        (torch.ones_like, torch.Tensor.float, "must return sigma_t as a float64 tensor .*, got torch.float32"),
        (lambda t: t.mean(), lambda t: t, r"must return alpha_t as a float64 tensor .*\[33\], got torch.float64 \[\]"),
        (torch.ones_like, lambda t: 0.5 - t, "sigma_t of Foreign must be finite and at least 0, got "),
        (lambda t: 1 / (t - t), torch.ones_like, "alpha_t of Foreign must be finite and at least 0, got "),
    ],
)
def test_a_schedule_with_invalid_coefficients_is_rejected(
    alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], message: str
) -> None:
    GaussianProcess(Foreign(0.01, 1.0, given=(torch.ones_like, lambda t: t)))
    with pytest.raises(ValueError, match=message):
        GaussianProcess(Foreign(0.01, 1.0, given=(alpha, sigma)))

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lab.process import (
    CosineSchedule,
    CustomSchedule,
    Interpolated,
    JSDSchedule,
    LinearSchedule,
    NoiseSchedule,
    QuadraticSchedule,
    SigmoidSchedule,
    TableSchedule,
)
from support.schedule_examples import INTERPOLATED, TABLES

EACH_TABLE = pytest.mark.parametrize("schedule", TABLES, ids=str)
EACH_INTERPOLATED = pytest.mark.parametrize("schedule", INTERPOLATED, ids=str)

num_timesteps = st.integers(2, 4000)
schedules: st.SearchStrategy[TableSchedule] = st.one_of(
    st.builds(LinearSchedule, num_timesteps, st.floats(1e-6, 1e-3), st.floats(2e-3, 0.05)),
    st.builds(QuadraticSchedule, num_timesteps, st.floats(1e-6, 1e-3), st.floats(2e-3, 0.05)),
    st.builds(CosineSchedule, num_timesteps, st.floats(1e-3, 0.1)),
    st.builds(SigmoidSchedule, num_timesteps),
    st.builds(JSDSchedule, num_timesteps),
    st.builds(LinearSchedule, num_timesteps, st.just(1e-4), st.floats(2e-3, 0.05), zero_terminal_snr=st.just(True)),
)


def at(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


@given(schedules)
def test_alpha_bar_is_the_product_of_one_minus_beta(schedule: TableSchedule) -> None:
    torch.testing.assert_close(schedule.alpha_bar, (1 - schedule.betas).cumprod(0), rtol=1e-9, atol=0)
    alpha_t, _ = schedule.coefficients(schedule.steps)
    torch.testing.assert_close(alpha_t**2, schedule.alpha_bar, rtol=1e-12, atol=0)


@given(schedules)
def test_squared_alpha_and_sigma_sum_to_1(schedule: TableSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(schedule.steps)
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones_like(alpha_t), rtol=0, atol=1e-14)


@given(schedules)
def test_signal_to_noise_ratio_decreases_at_every_step(schedule: TableSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(schedule.steps)
    assert bool(((alpha_t / sigma_t).diff() < 0).all())


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=str)
def test_sigma_of_the_first_step_is_more_precise_than_float32(schedule: TableSchedule) -> None:
    _, sigma_t = schedule.coefficients(schedule.steps[:1])
    assert float(sigma_t) ** 2 == pytest.approx(float(schedule.betas[0]), rel=1e-12)
    float32 = 1 - (1 - schedule.betas.float()).cumprod(0)  # relative error 1.7e-4 (linear) and 5.3e-4 (cosine)
    assert abs(float(float32[0]) / float(sigma_t) ** 2 - 1) > 1e-4


def test_sigma_near_the_data_keeps_full_precision() -> None:
    _, sigma_t = LinearSchedule(10, 1e-12, 0.02).coefficients(at(0.1))
    assert float(sigma_t) ** 2 / 1e-12 == pytest.approx(1, rel=1e-12)


@EACH_TABLE
def test_time_0_is_the_clean_image(schedule: TableSchedule) -> None:
    for each in (schedule, schedule.continuous):
        alpha_t, sigma_t = each.coefficients(torch.zeros(5))
        assert alpha_t.tolist() == [1.0] * 5
        assert sigma_t.tolist() == [0.0] * 5


@given(st.integers(1, 4000), st.sampled_from([torch.float32, torch.float64]))
def test_every_time_has_the_index_of_its_step(steps: int, dtype: torch.dtype) -> None:
    schedule = LinearSchedule(steps, 1e-4, 0.02)
    index = schedule.network_time(schedule.steps.to(dtype))
    assert index.dtype == torch.float64
    assert index.tolist() == list(range(steps))


@given(st.integers(2, 4000), st.data())
def test_times_between_two_steps_are_rejected(steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1)) + data.draw(st.floats(0.01, 0.99))
    schedule = LinearSchedule(steps)
    with pytest.raises(ValueError, match=rf"t must be one of 0, 1/{steps}, 2/{steps}, .* got"):
        schedule.coefficients(at(1.0, step / steps))


@pytest.mark.parametrize("t", [-0.001, 1.001, math.nan, math.inf])
def test_times_out_of_range_are_rejected(t: float) -> None:
    for function in (LinearSchedule().coefficients, LinearSchedule().network_time):
        with pytest.raises(ValueError, match=f"num_timesteps=1000, got {t}"):
            function(at(0.5, t))
    with pytest.raises(ValueError, match=rf"t must be in \[0, 1\], got {t}"):
        LinearSchedule().continuous.coefficients(at(0.5, t))


@pytest.mark.parametrize("schedule", [CosineSchedule(10), CosineSchedule(10).continuous], ids=str)
def test_results_are_float64_in_the_shape_of_the_times(schedule: NoiseSchedule) -> None:
    t = torch.tensor([[0.1, 0.5, 1.0], [0.2, 0.3, 0.9]])
    results = [
        *schedule.coefficients(t),
        schedule.nearest(t),
        schedule.quantile(t),
        schedule.network_time(t),
        schedule.at_log_snr(t),
        schedule.previous(t),
        schedule.following(t),
        schedule.log_snr(t),
    ]
    assert [(result.shape, result.dtype) for result in results] == [((2, 3), torch.float64)] * 9


def test_the_nearest_time_is_a_step_above_0() -> None:
    t = at(-1.0, 0.0, 0.04, 0.14, 0.16, 0.96, 3.0)
    assert LinearSchedule(10).nearest(t).tolist() == [0.1, 0.1, 0.1, 0.1, 0.2, 1.0, 1.0]


def test_ties_of_nearest_are_rounded_to_the_even_index() -> None:
    assert LinearSchedule(10).nearest(at(0.15, 0.25, 0.35, 0.45, 0.85, 0.95)).tolist() == [0.1, 0.3, 0.3, 0.5, 0.9, 0.9]


def test_quantiles_are_uniform_over_all_steps() -> None:
    t = LinearSchedule(8).quantile(torch.arange(4000, dtype=torch.float64) / 4000)
    times, counts = np.unique(t.numpy(), return_counts=True)
    assert times.tolist() == [k / 8 for k in range(1, 9)]
    assert counts.tolist() == [500] * 8


def test_previous_and_following_steps_are_adjacent_and_stop_at_the_ends() -> None:
    schedule = LinearSchedule(10, 1e-3, 0.3)
    for each in (schedule, schedule.continuous):
        assert each.previous(at(0.1, 0.2, 0.7, 1.0)).tolist() == pytest.approx([0.0, 0.1, 0.6, 0.9])
        assert each.following(at(0.1, 0.2, 0.7, 1.0)).tolist() == pytest.approx([0.2, 0.3, 0.8, 1.0])
    assert schedule.previous(at(0.0)).tolist() == [0.0]


def test_the_range_of_times_is_from_the_first_step_to_1() -> None:
    for schedule in (CosineSchedule(50), CosineSchedule(50).continuous):
        assert (schedule.t_min, schedule.t_max) == (0.02, 1.0)


def test_schedules_with_equal_settings_are_equal_and_print_their_settings() -> None:
    used = LinearSchedule(50)
    used.coefficients(torch.ones(3))
    assert used == LinearSchedule(50)
    assert used != LinearSchedule(51)
    assert used != LinearSchedule(50, zero_terminal_snr=True)
    assert hash(used) == hash(LinearSchedule(50))
    printed = "CosineSchedule(num_timesteps=50, offset=0.008, max_beta=0.999, zero_terminal_snr=False)"
    assert str(CosineSchedule(50)) == printed
    assert str(CosineSchedule(50).continuous) == f"Interpolated(table={printed})"


@EACH_TABLE
def test_at_log_snr_inverts_log_snr_at_the_steps(schedule: TableSchedule) -> None:
    for each in (schedule, schedule.continuous):
        found = each.at_log_snr(each.log_snr(schedule.steps))
        torch.testing.assert_close(found, schedule.steps, rtol=0, atol=1e-12)


def test_at_log_snr_inverts_log_snr_if_the_first_step_adds_no_noise() -> None:
    schedule = LinearSchedule(40, 0.0, 0.3)
    assert schedule.at_log_snr(schedule.log_snr(schedule.steps)).tolist() == pytest.approx(schedule.steps.tolist())
    single = LinearSchedule(1)
    assert single.at_log_snr(at(-9.0, 0.0, 9.0)).tolist() == [1.0, 1.0, 1.0]


@EACH_TABLE
@given(log_snr=st.floats(-12, 12))
def test_any_log_snr_gives_the_closest_step(schedule: TableSchedule, log_snr: float) -> None:
    distance = (schedule.log_snr(schedule.steps) - log_snr).abs()
    found = schedule.at_log_snr(at(log_snr))
    assert float((schedule.log_snr(found) - log_snr).abs()) == float(distance.min())


@EACH_INTERPOLATED
def test_an_interpolated_table_equals_the_table_at_its_steps(schedule: Interpolated) -> None:
    steps = schedule.table.steps
    for interpolated, table in zip(schedule.coefficients(steps), schedule.table.coefficients(steps), strict=True):
        assert torch.equal(interpolated, table)
    assert schedule.network_time(steps).tolist() == pytest.approx(schedule.table.network_time(steps).tolist())


@EACH_INTERPOLATED
def test_between_two_steps_the_snr_decreases_and_squared_alpha_and_sigma_sum_to_1(schedule: Interpolated) -> None:
    t = torch.linspace(schedule.t_min, 1, 1001, dtype=torch.float64)
    alpha_t, sigma_t = schedule.coefficients(t)
    assert bool(((alpha_t / sigma_t).diff() < 0).all())
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones(1001).double(), rtol=0, atol=1e-14)


@EACH_INTERPOLATED
@given(quantile=st.floats(0, 1))
def test_at_log_snr_inverts_log_snr_between_two_steps(schedule: Interpolated, quantile: float) -> None:
    t = schedule.quantile(at(quantile))
    torch.testing.assert_close(schedule.at_log_snr(schedule.log_snr(t)), t, rtol=0, atol=1e-7)


@EACH_INTERPOLATED
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
def test_between_two_steps_angle_and_network_time_are_linear(schedule: Interpolated, fraction: float) -> None:
    last = schedule.table.num_timesteps
    for step in (0, 1, last - 1):  # before the first step the table is interpolated to the clean image
        alphas, sigmas = schedule.coefficients(at(step, step + 1) / last)
        start, end = torch.atan2(sigmas, alphas).tolist()
        angle = (1 - fraction) * start + fraction * end
        alpha_t, sigma_t = schedule.coefficients(at(step + fraction) / last)
        assert float(alpha_t) == pytest.approx(math.cos(angle), abs=1e-12)
        assert float(sigma_t) == pytest.approx(math.sin(angle), rel=1e-9)
        assert float(schedule.network_time(at(step + fraction) / last)) == pytest.approx(step + fraction - 1, abs=1e-9)


def test_an_interpolated_table_is_defined_from_its_first_step_to_1() -> None:
    schedule = LinearSchedule(8).continuous
    assert schedule.quantile(at(0.0, 0.5, 1.0)).tolist() == pytest.approx([0.125, 0.5625, 1.0], rel=1e-12)
    assert schedule.nearest(at(-1.0, 0.05, 0.3, 2.0)).tolist() == [0.125, 0.125, 0.3, 1.0]


def test_the_continuous_extension_of_a_table_is_its_interpolation() -> None:
    table = CustomSchedule([0.1, 0.2])
    assert table.continuous == Interpolated(table)
    assert table.continuous.continuous is table.continuous

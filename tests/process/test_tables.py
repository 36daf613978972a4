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
from support.schedule_examples import BETWEEN, TABLES

TABLE = pytest.mark.parametrize("schedule", TABLES, ids=str)
INTERPOLATED = pytest.mark.parametrize("schedule", BETWEEN, ids=str)

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
def test_signal_level_is_the_product_of_one_minus_the_variances(schedule: TableSchedule) -> None:
    torch.testing.assert_close(schedule.alpha_bar, (1 - schedule.betas).cumprod(0), rtol=1e-9, atol=0)
    alpha_t, _ = schedule.coefficients(schedule.steps)
    torch.testing.assert_close(alpha_t**2, schedule.alpha_bar, rtol=1e-12, atol=0)


@given(schedules)
def test_signal_and_noise_have_unit_power_together(schedule: TableSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(schedule.steps)
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones_like(alpha_t), rtol=0, atol=1e-14)


@given(schedules)
def test_signal_to_noise_ratio_falls_at_every_step(schedule: TableSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(schedule.steps)
    assert bool(((alpha_t / sigma_t).diff() < 0).all())


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=str)
def test_noise_of_the_first_step_is_not_that_of_a_float32_table(schedule: TableSchedule) -> None:
    _, sigma_t = schedule.coefficients(schedule.steps[:1])
    assert float(sigma_t) ** 2 == pytest.approx(float(schedule.betas[0]), rel=1e-12)
    float32 = 1 - (1 - schedule.betas.float()).cumprod(0)  # off by 1.7e-4 (linear) and 5.3e-4 (cosine)
    assert abs(float(float32[0]) / float(sigma_t) ** 2 - 1) > 1e-4


def test_noise_near_the_data_keeps_all_its_digits() -> None:
    _, sigma_t = LinearSchedule(10, 1e-12, 0.02).coefficients(at(0.1))
    assert float(sigma_t) ** 2 / 1e-12 == pytest.approx(1, rel=1e-12)


@TABLE
def test_time_0_is_the_clean_image(schedule: TableSchedule) -> None:
    for asked in (schedule, schedule.continuous):
        alpha_t, sigma_t = asked.coefficients(torch.zeros(5))
        assert alpha_t.tolist() == [1.0] * 5
        assert sigma_t.tolist() == [0.0] * 5


@given(st.integers(1, 4000), st.sampled_from([torch.float32, torch.float64]))
def test_every_time_leads_back_to_its_step(steps: int, dtype: torch.dtype) -> None:
    schedule = LinearSchedule(steps, 1e-4, 0.02)
    index = schedule.network_time(schedule.steps.to(dtype))
    assert index.dtype == torch.float64
    assert index.tolist() == list(range(steps))


@given(st.integers(2, 4000), st.data())
def test_times_between_two_steps_are_refused(steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1)) + data.draw(st.floats(0.01, 0.99))
    schedule = LinearSchedule(steps)
    with pytest.raises(ValueError, match=rf"t must be one of 0, 1/{steps}, 2/{steps}, .* got"):
        schedule.coefficients(at(1.0, step / steps))


@pytest.mark.parametrize("t", [-0.001, 1.001, math.nan, math.inf])
def test_times_out_of_range_are_refused(t: float) -> None:
    for answer in (LinearSchedule().coefficients, LinearSchedule().network_time):
        with pytest.raises(ValueError, match=f"num_timesteps=1000, got {t}"):
            answer(at(0.5, t))
    with pytest.raises(ValueError, match=rf"t must be in \[0, 1\], got {t}"):
        LinearSchedule().continuous.coefficients(at(0.5, t))


@pytest.mark.parametrize("schedule", [CosineSchedule(10), CosineSchedule(10).continuous], ids=str)
def test_answers_are_float64_and_shaped_as_the_times(schedule: NoiseSchedule) -> None:
    t = torch.tensor([[0.1, 0.5, 1.0], [0.2, 0.3, 0.9]])
    answers = [
        *schedule.coefficients(t),
        schedule.nearest(t),
        schedule.quantile(t),
        schedule.network_time(t),
        schedule.at_log_snr(t),
        schedule.previous(t),
        schedule.following(t),
        schedule.log_snr(t),
    ]
    assert [(answer.shape, answer.dtype) for answer in answers] == [((2, 3), torch.float64)] * 9


def test_nearest_time_is_a_step_of_the_table_and_never_0() -> None:
    t = at(-1.0, 0.0, 0.04, 0.14, 0.16, 0.96, 3.0)
    assert LinearSchedule(10).nearest(t).tolist() == [0.1, 0.1, 0.1, 0.1, 0.2, 1.0, 1.0]


def test_halfway_between_two_steps_the_even_index_is_nearest() -> None:
    assert LinearSchedule(10).nearest(at(0.15, 0.25, 0.35, 0.45, 0.85, 0.95)).tolist() == [0.1, 0.3, 0.3, 0.5, 0.9, 0.9]


def test_uniform_numbers_become_all_times_equally_often() -> None:
    t = LinearSchedule(8).quantile(torch.arange(4000, dtype=torch.float64) / 4000)
    times, counts = np.unique(t.numpy(), return_counts=True)
    assert times.tolist() == [k / 8 for k in range(1, 9)]
    assert counts.tolist() == [500] * 8


def test_steps_before_and_after_are_the_neighbours_and_stop_at_the_ends() -> None:
    schedule = LinearSchedule(10, 1e-3, 0.3)
    for asked in (schedule, schedule.continuous):
        assert asked.previous(at(0.1, 0.2, 0.7, 1.0)).tolist() == pytest.approx([0.0, 0.1, 0.6, 0.9])
        assert asked.following(at(0.1, 0.2, 0.7, 1.0)).tolist() == pytest.approx([0.2, 0.3, 0.8, 1.0])
    assert schedule.previous(at(0.0)).tolist() == [0.0]


def test_sampling_may_visit_times_from_the_first_step_to_1() -> None:
    for schedule in (CosineSchedule(50), CosineSchedule(50).continuous):
        assert (schedule.t_min, schedule.t_max) == (0.02, 1.0)


def test_schedules_built_alike_are_equal_and_print_their_settings() -> None:
    used = LinearSchedule(50)
    used.coefficients(torch.ones(3))
    assert used == LinearSchedule(50)
    assert used != LinearSchedule(51)
    assert used != LinearSchedule(50, zero_terminal_snr=True)
    assert hash(used) == hash(LinearSchedule(50))
    printed = "CosineSchedule(num_timesteps=50, offset=0.008, max_beta=0.999, zero_terminal_snr=False)"
    assert str(CosineSchedule(50)) == printed
    assert str(CosineSchedule(50).continuous) == f"Interpolated(table={printed})"


@TABLE
def test_log_snr_leads_back_to_its_step_exactly(schedule: TableSchedule) -> None:
    for asked in (schedule, schedule.continuous):
        answered = asked.at_log_snr(asked.log_snr(schedule.steps))
        torch.testing.assert_close(answered, schedule.steps, rtol=0, atol=1e-12)


def test_log_snr_of_a_first_step_without_noise_leads_back_to_it() -> None:
    schedule = LinearSchedule(40, 0.0, 0.3)
    assert schedule.at_log_snr(schedule.log_snr(schedule.steps)).tolist() == pytest.approx(schedule.steps.tolist())
    alone = LinearSchedule(1)
    assert alone.at_log_snr(at(-9.0, 0.0, 9.0)).tolist() == [1.0, 1.0, 1.0]


@TABLE
@given(log_snr=st.floats(-12, 12))
def test_any_log_snr_leads_to_the_step_nearest_to_it(schedule: TableSchedule, log_snr: float) -> None:
    distance = (schedule.log_snr(schedule.steps) - log_snr).abs()
    answered = schedule.at_log_snr(at(log_snr))
    assert float((schedule.log_snr(answered) - log_snr).abs()) == float(distance.min())


@INTERPOLATED
def test_an_interpolated_table_is_the_table_at_its_steps(schedule: Interpolated) -> None:
    steps = schedule.table.steps
    for between, table in zip(schedule.coefficients(steps), schedule.table.coefficients(steps), strict=True):
        assert torch.equal(between, table)
    assert schedule.network_time(steps).tolist() == pytest.approx(schedule.table.network_time(steps).tolist())


@INTERPOLATED
def test_between_two_steps_signal_falls_and_power_stays_1(schedule: Interpolated) -> None:
    t = torch.linspace(schedule.t_min, 1, 1001, dtype=torch.float64)
    alpha_t, sigma_t = schedule.coefficients(t)
    assert bool(((alpha_t / sigma_t).diff() < 0).all())
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones(1001).double(), rtol=0, atol=1e-14)


@INTERPOLATED
@given(place=st.floats(0, 1))
def test_log_snr_leads_back_to_any_time_between_steps(schedule: Interpolated, place: float) -> None:
    t = schedule.quantile(at(place))
    torch.testing.assert_close(schedule.at_log_snr(schedule.log_snr(t)), t, rtol=0, atol=1e-7)


@INTERPOLATED
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_between_two_steps_the_angle_grows_evenly_and_the_index_is_broken(schedule: Interpolated, share: float) -> None:
    last = schedule.table.num_timesteps
    for step in (0, 1, last - 1):  # before the first step the curve goes on to the clean image
        alphas, sigmas = schedule.coefficients(at(step, step + 1) / last)
        start, end = torch.atan2(sigmas, alphas).tolist()
        angle = (1 - share) * start + share * end
        alpha_t, sigma_t = schedule.coefficients(at(step + share) / last)
        assert float(alpha_t) == pytest.approx(math.cos(angle), abs=1e-12)
        assert float(sigma_t) == pytest.approx(math.sin(angle), rel=1e-9)
        assert float(schedule.network_time(at(step + share) / last)) == pytest.approx(step + share - 1, abs=1e-9)


def test_an_interpolated_table_visits_every_time_between_its_first_step_and_1() -> None:
    schedule = LinearSchedule(8).continuous
    assert schedule.quantile(at(0.0, 0.5, 1.0)).tolist() == pytest.approx([0.125, 0.5625, 1.0], rel=1e-12)
    assert schedule.nearest(at(-1.0, 0.05, 0.3, 2.0)).tolist() == [0.125, 0.125, 0.3, 1.0]


def test_a_table_and_its_continuation_name_one_another() -> None:
    table = CustomSchedule([0.1, 0.2])
    assert table.continuous == Interpolated(table)
    assert table.continuous.continuous is table.continuous

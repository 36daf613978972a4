"""Golden values: the authors' formulas in float64 (Ho et al. 2020; Nichol & Dhariwal 2021), 7 significant digits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.process import CosineSchedule, LinearSchedule, NoiseSchedule, TableSchedule

SCALED_LINEAR = LinearSchedule(4000, 2.5e-5, 0.005)  # Nichol & Dhariwal (2021), code: variances times 1000 / T

num_timesteps = st.integers(2, 4000)
schedules: st.SearchStrategy[TableSchedule] = st.one_of(
    st.builds(LinearSchedule, num_timesteps, st.floats(1e-6, 1e-3), st.floats(2e-3, 0.05)),
    st.builds(CosineSchedule, num_timesteps, st.floats(1e-3, 0.1)),
)


def seven_digits(values: list[float]) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


def grid(schedule: TableSchedule, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.arange(1, schedule.num_timesteps + 1, dtype=dtype) / schedule.num_timesteps


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        (LinearSchedule(1000), [0.9999, 0.5240854, 0.07858724, 3.350550e-03, 4.035830e-05]),
        (SCALED_LINEAR, [0.999975, 0.5237808, 0.07894487, 3.418601e-03, 4.246652e-05]),
        (CosineSchedule(1000), [0.9999587, 0.8470122, 0.4938436, 0.1442721, 2.428767e-09]),
        (CosineSchedule(4000), [0.9999901, 0.8470122, 0.4938436, 0.1442721, 1.517980e-10]),
    ],
    ids=str,
)
def test_signal_levels_are_those_of_the_papers(schedule: TableSchedule, levels: list[float]) -> None:
    steps = schedule.num_timesteps
    index = [0, steps // 4 - 1, steps // 2 - 1, 3 * steps // 4 - 1, steps - 1]
    assert seven_digits(schedule.alpha_bar[index].tolist()) == levels


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (LinearSchedule(1000), 1e-4, 0.02),
        (SCALED_LINEAR, 2.5e-5, 0.005),
        (CosineSchedule(1000), 4.128422e-05, 0.999),
        (CosineSchedule(4000), 9.865819e-06, 0.999),
    ],
    ids=str,
)
def test_first_and_last_variances_are_those_of_the_papers(schedule: TableSchedule, first: float, last: float) -> None:
    assert schedule.betas.dtype == torch.float64
    assert seven_digits([float(schedule.betas[0]), float(schedule.betas[-1])]) == [first, last]


def test_linear_variances_grow_by_equal_steps() -> None:
    torch.testing.assert_close(LinearSchedule(5, 0.1, 0.5).betas, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).double())


def test_cosine_signal_follows_equation_17_up_to_the_bounded_last_step() -> None:
    schedule = CosineSchedule(1000)
    curve = torch.cos((grid(schedule) + 0.008) / 1.008 * math.pi / 2) ** 2
    expected = curve / math.cos(0.008 / 1.008 * math.pi / 2) ** 2  # Nichol & Dhariwal (2021), eq. 17
    torch.testing.assert_close(schedule.alpha_bar[:-1], expected[:-1], rtol=1e-9, atol=0)
    assert float(schedule.alpha_bar[-1] / schedule.alpha_bar[-2]) == pytest.approx(1 - 0.999, rel=1e-9)


@given(schedules)
def test_signal_level_is_the_product_of_one_minus_the_variances(schedule: TableSchedule) -> None:
    torch.testing.assert_close(schedule.alpha_bar, (1 - schedule.betas).cumprod(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.coefficients(grid(schedule))[0] ** 2, schedule.alpha_bar, rtol=1e-12, atol=0)


@given(schedules)
def test_signal_and_noise_have_unit_power_together(schedule: TableSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(grid(schedule))
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones_like(alpha_t), rtol=0, atol=1e-14)


@given(schedules)
def test_signal_to_noise_ratio_falls_at_every_step(schedule: TableSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(grid(schedule))
    assert bool(((alpha_t / sigma_t).diff() < 0).all())


def test_noise_near_the_data_keeps_all_its_digits() -> None:
    _, sigma_t = LinearSchedule(10, 1e-12, 0.02).coefficients(torch.tensor([0.1]))
    assert float(sigma_t) ** 2 / 1e-12 == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("schedule", [LinearSchedule(7), CosineSchedule(7)], ids=str)
def test_time_0_is_the_clean_image(schedule: TableSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(torch.zeros(5))
    assert alpha_t.tolist() == [1.0] * 5
    assert sigma_t.tolist() == [0.0] * 5


@given(st.integers(1, 4000), st.sampled_from([torch.float32, torch.float64]))
def test_every_time_leads_back_to_its_step(steps: int, dtype: torch.dtype) -> None:
    schedule = LinearSchedule(steps)
    index = schedule.network_time(grid(schedule, dtype))
    assert index.dtype == torch.float64
    assert index.tolist() == list(range(steps))


@given(st.integers(2, 4000), st.data())
def test_times_between_two_steps_are_refused(steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1)) + data.draw(st.floats(0.01, 0.99))
    schedule = LinearSchedule(steps)
    with pytest.raises(ValueError, match=rf"t must be one of 0, 1/{steps}, 2/{steps}, .* got"):
        schedule.coefficients(torch.tensor([1.0, step / steps], dtype=torch.float64))


@pytest.mark.parametrize("t", [-0.001, 1.001, math.nan, math.inf])
def test_times_out_of_range_are_refused(t: float) -> None:
    for answer in (LinearSchedule().coefficients, LinearSchedule().network_time):
        with pytest.raises(ValueError, match=f"num_timesteps=1000, got {t}"):
            answer(torch.tensor([0.5, t], dtype=torch.float64))


def test_answers_are_float64_and_shaped_as_the_times() -> None:
    schedule = CosineSchedule(10)
    t = torch.tensor([[0.1, 0.5, 1.0], [0.2, 0.3, 0.9]])
    answers = (*schedule.coefficients(t), schedule.nearest(t), schedule.quantile(t), schedule.network_time(t))
    assert [(answer.shape, answer.dtype) for answer in answers] == [((2, 3), torch.float64)] * 5


def test_nearest_time_is_a_step_of_the_table_and_never_0() -> None:
    t = torch.tensor([-1.0, 0.0, 0.04, 0.14, 0.16, 0.96, 3.0])
    assert LinearSchedule(10).nearest(t).tolist() == [0.1, 0.1, 0.1, 0.1, 0.2, 1.0, 1.0]


def test_uniform_numbers_become_all_times_equally_often() -> None:
    t = LinearSchedule(8).quantile(torch.arange(4000, dtype=torch.float64) / 4000)
    times, counts = np.unique(t.numpy(), return_counts=True)
    assert times.tolist() == [k / 8 for k in range(1, 9)]
    assert counts.tolist() == [500] * 8


def test_sampling_may_visit_times_from_the_first_step_to_1() -> None:
    assert (CosineSchedule(50).t_min, CosineSchedule(50).t_max) == (0.02, 1.0)


def test_schedules_built_alike_are_equal_and_print_their_settings() -> None:
    used = LinearSchedule(50)
    used.coefficients(torch.ones(3))
    assert used == LinearSchedule(50)
    assert used != LinearSchedule(51)
    assert hash(used) == hash(LinearSchedule(50))
    assert str(CosineSchedule(50)) == "CosineSchedule(num_timesteps=50, offset=0.008, max_beta=0.999)"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearSchedule(0), "num_timesteps must be a whole number of at least 1, got 0"),
        (lambda: CosineSchedule(-3), "num_timesteps must be a whole number of at least 1, got -3"),
        (lambda: LinearSchedule(10.5), "num_timesteps must be a whole number of at least 1, got 10.5"),  # type: ignore[arg-type]
        (lambda: LinearSchedule(beta_start=-0.1), r"beta_start must be in \[0, 1\], got -0.1"),
        (lambda: LinearSchedule(beta_end=1.1), r"beta_end must be in \[0, 1\], got 1.1"),
        (lambda: CosineSchedule(offset=1.0), r"offset must be in \[0, 1\), got 1.0"),
        (lambda: CosineSchedule(max_beta=0.0), r"max_beta must be in \(0, 1\], got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], NoiseSchedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

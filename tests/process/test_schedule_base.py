"""What every schedule owes, whatever its kind."""

import copy
import math
from dataclasses import FrozenInstanceError

import pytest
import torch

from diffusion_lab.process import (
    EDMSchedule,
    JSDSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    VESchedule,
    VPSchedule,
)
from support.schedule_examples import SCHEDULES, some_times

SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@SCHEDULE
def test_log_snr_is_the_logarithm_of_squared_alpha_over_sigma(schedule: NoiseSchedule) -> None:
    t = some_times(schedule)[:-1]  # at the last time alpha may be 0
    alpha_t, sigma_t = schedule.coefficients(t)
    torch.testing.assert_close(schedule.log_snr(t).exp(), alpha_t**2 / sigma_t**2, rtol=1e-9, atol=0)
    assert schedule.log_snr(torch.zeros(1)).tolist() == [math.inf]


@SCHEDULE
def test_any_log_snr_has_a_time_even_nothing_but_noise_and_none_at_all(schedule: NoiseSchedule) -> None:
    asked = torch.tensor([-math.inf, 400.0, math.inf], dtype=torch.float64)
    first, last = schedule.t_min, schedule.t_max
    assert schedule.at_log_snr(asked).tolist() == pytest.approx([last, first, first], abs=1e-12)


@SCHEDULE
def test_uniform_numbers_and_any_others_become_times_of_the_schedule(schedule: NoiseSchedule) -> None:
    u = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (schedule.quantile(u), schedule.nearest(3 * u - 1), schedule.at_log_snr(40 * u - 20)):
        assert schedule.t_min <= float(t.min()) < float(t.max()) <= schedule.t_max
        torch.testing.assert_close(schedule.nearest(t), t, rtol=0, atol=1e-15)
        schedule.coefficients(t)


@SCHEDULE
def test_uniform_times_run_from_the_first_to_the_last(schedule: NoiseSchedule) -> None:
    ends = schedule.quantile(torch.tensor([0.0, 1 - 1e-13], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([schedule.t_min, schedule.t_max], rel=1e-11)


@pytest.mark.parametrize(
    ("schedule", "std"),
    [
        (LinearSchedule(40, 1e-3, 0.05), 1.0),  # sigma is 0.8 there: the papers start from unit noise all the same
        (LinearSchedule(40, 1e-3, 0.05).continuous, 1.0),
        (JSDSchedule(40), 1.0),
        (VPSchedule(), 1.0),
        (RectifiedFlowSchedule(), 1.0),
        (EDMSchedule(), 80.0),
        (VESchedule(), 50.0),
    ],
    ids=str,
)
def test_sampling_starts_with_unit_noise_where_variance_is_kept_and_else_with_sigma(
    schedule: NoiseSchedule, std: float
) -> None:
    t = torch.tensor([schedule.t_max], dtype=torch.float64)
    assert schedule.prior_std(t).tolist() == pytest.approx([std], rel=1e-12)


@SCHEDULE
def test_remaining_signal_is_alpha_over_sigma_at_the_end(schedule: NoiseSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(torch.tensor([schedule.t_max], dtype=torch.float64))
    assert schedule.remaining_signal == pytest.approx(float(alpha_t / sigma_t), rel=1e-12)


def test_a_short_linear_table_keeps_most_of_the_signal_and_a_long_one_hardly_any() -> None:
    assert LinearSchedule(50).remaining_signal == pytest.approx(1.2323, abs=1e-4)
    assert LinearSchedule(1000).remaining_signal == pytest.approx(math.sqrt(4.035830e-05), rel=1e-4)
    assert EDMSchedule(0.002, 50.1).remaining_signal == pytest.approx(1 / 50.1, rel=1e-12)  # 50.1 is no float32


@SCHEDULE
def test_schedules_built_alike_are_equal_after_use_too(schedule: NoiseSchedule) -> None:
    other = copy.deepcopy(schedule)
    schedule.coefficients(torch.tensor([schedule.t_max]))
    assert schedule == other
    assert hash(schedule) == hash(other)


@SCHEDULE
def test_a_schedule_cannot_be_changed(schedule: NoiseSchedule) -> None:
    with pytest.raises(FrozenInstanceError):
        schedule.first = 0.5  # type: ignore[attr-defined]

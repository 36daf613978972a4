"""Properties that all schedules have in common."""

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

EACH_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@EACH_SCHEDULE
def test_log_snr_is_the_logarithm_of_squared_alpha_over_sigma(schedule: NoiseSchedule) -> None:
    t = some_times(schedule)[:-1]  # alpha may be 0 at the last time
    alpha_t, sigma_t = schedule.coefficients(t)
    torch.testing.assert_close(schedule.log_snr(t).exp(), alpha_t**2 / sigma_t**2, rtol=1e-9, atol=0)
    assert schedule.log_snr(torch.zeros(1)).tolist() == [math.inf]


@EACH_SCHEDULE
def test_infinite_log_snrs_give_the_first_and_the_last_time(schedule: NoiseSchedule) -> None:
    log_snr = torch.tensor([-math.inf, 400.0, math.inf], dtype=torch.float64)
    first, last = schedule.t_min, schedule.t_max
    assert schedule.at_log_snr(log_snr).tolist() == pytest.approx([last, first, first], abs=1e-12)


@EACH_SCHEDULE
def test_quantile_nearest_and_at_log_snr_return_times_of_the_schedule(schedule: NoiseSchedule) -> None:
    u = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (schedule.quantile(u), schedule.nearest(3 * u - 1), schedule.at_log_snr(40 * u - 20)):
        assert schedule.t_min <= float(t.min()) < float(t.max()) <= schedule.t_max
        torch.testing.assert_close(schedule.nearest(t), t, rtol=0, atol=1e-15)
        schedule.coefficients(t)


@EACH_SCHEDULE
def test_quantiles_range_from_t_min_to_t_max(schedule: NoiseSchedule) -> None:
    ends = schedule.quantile(torch.tensor([0.0, 1 - 1e-13], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([schedule.t_min, schedule.t_max], rel=1e-11)


@pytest.mark.parametrize(
    ("schedule", "std"),
    [
        (LinearSchedule(40, 1e-3, 0.05), 1.0),  # sigma is 0.8 at t_max, but the papers start from unit noise
        (LinearSchedule(40, 1e-3, 0.05).continuous, 1.0),
        (JSDSchedule(40), 1.0),
        (VPSchedule(), 1.0),
        (RectifiedFlowSchedule(), 1.0),
        (EDMSchedule(), 80.0),
        (VESchedule(), 50.0),
    ],
    ids=str,
)
def test_prior_std_is_1_for_variance_preserving_schedules_and_else_sigma(schedule: NoiseSchedule, std: float) -> None:
    t = torch.tensor([schedule.t_max], dtype=torch.float64)
    assert schedule.prior_std(t).tolist() == pytest.approx([std], rel=1e-12)


@EACH_SCHEDULE
def test_remaining_signal_is_alpha_over_sigma_at_t_max(schedule: NoiseSchedule) -> None:
    alpha_t, sigma_t = schedule.coefficients(torch.tensor([schedule.t_max], dtype=torch.float64))
    assert schedule.remaining_signal == pytest.approx(float(alpha_t / sigma_t), rel=1e-12)


def test_remaining_signal_of_linear_schedules_depends_on_the_number_of_steps() -> None:
    assert LinearSchedule(50).remaining_signal == pytest.approx(1.2323, abs=1e-4)
    assert LinearSchedule(1000).remaining_signal == pytest.approx(math.sqrt(4.035830e-05), rel=1e-4)
    assert EDMSchedule(0.002, 50.1).remaining_signal == pytest.approx(1 / 50.1, rel=1e-12)  # inexact in float32


@EACH_SCHEDULE
def test_schedules_with_equal_settings_are_equal_after_use(schedule: NoiseSchedule) -> None:
    other = copy.deepcopy(schedule)
    schedule.coefficients(torch.tensor([schedule.t_max]))
    assert schedule == other
    assert hash(schedule) == hash(other)


@EACH_SCHEDULE
def test_schedules_are_immutable(schedule: NoiseSchedule) -> None:
    with pytest.raises(FrozenInstanceError):
        schedule.first = 0.5  # type: ignore[attr-defined]

"""Each time grid against its paper or the code of the paper. Common laws are in test_time_grid_laws.py."""

import math

import numpy as np
import pytest
import torch

from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    JSDSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    VESchedule,
    VPSchedule,
)
from diffusion_lab.samplers import (
    DDIMTimes,
    KarrasTimes,
    LeadingTimes,
    ListedTimes,
    LogSNRTimes,
    QuadraticTimes,
    SectionTimes,
    TimeGrid,
    TrailingTimes,
    UniformTimes,
)


def indices(grid: TimeGrid, num_steps: int | None, num_timesteps: int = 1000) -> list[int]:
    """Return the step indices k - 1 of a grid, from data to noise as in the papers."""
    times = grid(LinearSchedule(num_timesteps), num_steps)
    return [round(t * num_timesteps) - 1 for t in reversed(times)]


@pytest.mark.parametrize(
    ("grid", "num_steps", "first", "last"),
    [
        (UniformTimes(), 250, [0, 4, 8], [991, 995, 999]),
        (UniformTimes(), 100, [0, 10, 20], [979, 989, 999]),
        (DDIMTimes(), 50, [0, 20, 40], [940, 960, 980]),
        (DDIMTimes(), 25, [0, 40, 80], [880, 920, 960]),
        (SectionTimes([10] * 5), 50, [0, 22, 44], [955, 977, 999]),  # "10,10,10,10,10"
        (TrailingTimes(), 50, [19, 39, 59], [959, 979, 999]),
    ],
    ids=["250", "100", "ddim50", "ddim25", "sections", "trailing"],
)
def test_subsets_of_1000_steps_are_those_of_the_published_code(
    grid: TimeGrid, num_steps: int, first: list[int], last: list[int]
) -> None:
    visited = indices(grid, num_steps)
    assert len(visited) == num_steps
    assert (visited[:3], visited[-3:]) == (first, last)


@pytest.mark.parametrize("num_steps", [3, 10, 25, 37, 50, 75, 100, 250, 1000])
def test_uniform_indices_are_rounded_as_in_nichol_and_dhariwal(num_steps: int) -> None:
    stride = 999 / (num_steps - 1)  # their space_timesteps, which rounds .5 to the even index
    assert indices(UniformTimes(), num_steps) == [round(stride * i) for i in range(num_steps)]


@pytest.mark.parametrize("num_steps", [10, 21, 30, 50, 100, 999, 1000])
def test_leading_steps_are_those_of_song_et_al(num_steps: int) -> None:
    # 30 of 1000 steps are 30: range(0, 1000, 33) would have 31 (and 22 for 21 steps).
    stride = 1000 // num_steps
    assert indices(LeadingTimes(), num_steps) == [i * stride for i in range(num_steps)]


def test_leading_steps_are_shifted_by_their_offset_which_must_leave_them_in_the_schedule() -> None:
    assert indices(LeadingTimes(offset=1), 4) == [1, 251, 501, 751]
    assert indices(LeadingTimes(offset=249), 4) == [249, 499, 749, 999]
    with pytest.raises(ValueError, match=r"offset must be at most 249 for num_steps=4, got 250"):
        indices(LeadingTimes(offset=250), 4)
    with pytest.raises(ValueError, match=r"offset must be at least 0, got -1"):
        LeadingTimes(offset=-1)
    with pytest.raises(ValueError, match=r"offset must be 0 for a continuous schedule, got 2"):
        LeadingTimes(offset=2)(EDMSchedule(), 4)


@pytest.mark.parametrize("num_timesteps", [2, 100, 1000])
def test_ddim_steps_are_those_of_nichol_and_dhariwal_and_other_numbers_are_refused(num_timesteps: int) -> None:
    for num_steps in range(1, num_timesteps + 1):
        strides = (k for k in range(1, num_timesteps) if len(range(0, num_timesteps, k)) == num_steps)
        stride = next(strides, None)  # their space_timesteps raises ValueError without one
        if stride is not None:
            assert indices(DDIMTimes(), num_steps, num_timesteps) == list(range(0, num_timesteps, stride))
        else:
            with pytest.raises(ValueError, match=f"time grid DDIMTimes .*got {num_steps}"):
                DDIMTimes()(LinearSchedule(num_timesteps), num_steps)


def test_ddim_steps_differ_from_leading_steps_if_num_steps_does_not_divide_the_schedule() -> None:
    assert indices(DDIMTimes(), 3) == [0, 334, 668]
    assert indices(LeadingTimes(), 3) == [0, 333, 666]
    assert indices(DDIMTimes(), None) == list(range(1000))


@pytest.mark.parametrize("num_steps", [10, 30, 50, 1000])
def test_trailing_steps_are_those_of_lin_et_al(num_steps: int) -> None:
    expected = np.round(np.arange(1000, 0, -1000 / num_steps)).astype(int) - 1
    assert indices(TrailingTimes(), num_steps) == expected[::-1].tolist()


@pytest.mark.parametrize("num_steps", [10, 20, 25])
def test_quadratic_steps_are_those_of_song_et_al(num_steps: int) -> None:
    squares = [int(s) for s in np.linspace(0, np.sqrt(0.8 * 1000), num_steps) ** 2]
    assert indices(QuadraticTimes(), num_steps) == squares
    assert len(set(squares)) == num_steps


def test_equal_quadratic_steps_are_made_distinct() -> None:
    visited = indices(QuadraticTimes(), 100)
    squares = [int(s) for s in np.linspace(0, np.sqrt(0.8 * 1000), 100) ** 2]
    assert visited[:6] == [0, 1, 2, 3, 4, 5]  # 0, 0, 0, 0, 1, 2 before
    assert visited[20:] == squares[20:]


def test_reach_sets_the_last_index_of_quadratic_steps() -> None:
    assert indices(QuadraticTimes(reach=0.5), 10)[-1] == 500
    assert indices(QuadraticTimes(reach=1.0), 10)[-1] == 999


def test_sections_are_those_of_nichol_and_dhariwal() -> None:
    assert indices(SectionTimes([4, 3, 1]), None, 20) == [0, 2, 4, 6, 7, 10, 13, 14]
    assert indices(SectionTimes([2, 1]), 6, 20) == [0, 3, 6, 9, 10, 19]


def test_the_levels_of_karras_et_al_agree_to_the_listed_digits() -> None:
    levels = [80, 57.586, 40.786, 28.375, 19.353, 12.910, 8.4009, 5.3152, 3.2568]
    levels += [1.9233, 1.0882, 0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.0020]
    found = KarrasTimes()(EDMSchedule(), 18)
    assert found[:6] == pytest.approx(levels[:6], abs=6e-4)
    assert found[6:] == pytest.approx(levels[6:], abs=6e-5)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("schedule", [EDMSchedule(), VESchedule(), VPSchedule(), RectifiedFlowSchedule()], ids=str)
def test_the_roots_of_karras_levels_are_evenly_spaced_on_every_schedule(rho: float, schedule: NoiseSchedule) -> None:
    num_infinite = int(schedule == RectifiedFlowSchedule())  # the first time is t_max, with an infinite level
    times = KarrasTimes(rho, sigma_min=0.05, sigma_max=20.0)(schedule, 9 + num_infinite)
    alpha_t, sigma_t = schedule.coefficients(torch.tensor(times[num_infinite:], dtype=torch.float64))
    expected = torch.linspace(20.0 ** (1 / rho), 0.05 ** (1 / rho), 9, dtype=torch.float64) ** rho  # eq. 5
    torch.testing.assert_close(sigma_t / alpha_t, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", [EDMSchedule(), VESchedule(), VPSchedule()], ids=str)
def test_log_snr_times_are_evenly_spaced_between_the_ends_of_the_schedule(schedule: NoiseSchedule) -> None:
    times = torch.tensor(LogSNRTimes()(schedule, 9), dtype=torch.float64)
    found = schedule.log_snr(times)
    torch.testing.assert_close(found.diff(), found.diff()[:1].expand(8), rtol=1e-7, atol=0)
    assert times.tolist()[:: len(times) - 1] == pytest.approx([schedule.t_max, schedule.t_min], rel=1e-9)


@pytest.mark.parametrize("grid", [KarrasTimes(), LogSNRTimes()], ids=str)
@pytest.mark.parametrize(
    "schedule", [JSDSchedule(50), CosineSchedule(50, zero_terminal_snr=True), RectifiedFlowSchedule()], ids=str
)
def test_the_first_time_is_t_max_also_if_it_has_no_signal(grid: TimeGrid, schedule: NoiseSchedule) -> None:
    times = grid(schedule, 8)
    assert (times[0], len(times)) == (1.0, 8)
    # The level of t_max is infinite: evenly spaced levels start one step before it.
    before = 0.98 if schedule != RectifiedFlowSchedule() else 0.999
    assert times[1] == pytest.approx(before, abs=1e-9)
    assert times[-1] == pytest.approx(schedule.t_min, rel=1e-9)
    assert grid(schedule, 1) == (1.0,)


def test_log_snr_times_of_a_table_are_the_nearest_steps() -> None:
    table = LinearSchedule(1000)
    log_snr = table.log_snr(torch.tensor(LogSNRTimes()(table, 8), dtype=torch.float64))
    targets = torch.linspace(float(log_snr[0]), float(log_snr[-1]), 8, dtype=torch.float64)
    all_log_snr = table.log_snr(table.steps)
    for found, target in zip(log_snr.tolist(), targets.tolist(), strict=True):
        assert abs(found - target) == pytest.approx(float((all_log_snr - target).abs().min()), abs=1e-9)


def test_log_snr_times_reach_the_data_if_the_first_step_of_the_schedule_adds_no_noise() -> None:
    # The log-SNR of that step is infinite, so that the grid ends at the step after it.
    found = LogSNRTimes()(LinearSchedule(50, 0.0, 0.98), 6)
    assert found[0] == 1.0
    assert found[-1] <= 0.1


@pytest.mark.parametrize(
    ("schedule", "grid", "expected"),
    [
        (EDMSchedule(), TrailingTimes(), [80.0, 60.0, 40.0, 20.0]),
        (RectifiedFlowSchedule(), TrailingTimes(), [1.0, 0.75, 0.5, 0.25]),
        (RectifiedFlowSchedule(), UniformTimes(), [1.0, 0.667, 0.334, 0.001]),
        (RectifiedFlowSchedule(), LeadingTimes(), [0.75025, 0.5005, 0.25075, 0.001]),
        (RectifiedFlowSchedule(), QuadraticTimes(), [0.8, 0.799 * 4 / 9 + 0.001, 0.799 / 9 + 0.001, 0.001]),
    ],
    ids=str,
)
def test_continuous_schedules_are_divided_between_t_min_and_t_max(
    schedule: NoiseSchedule, grid: TimeGrid, expected: list[float]
) -> None:
    assert grid(schedule, 4) == pytest.approx(expected, rel=1e-12)


def test_a_single_step_starts_at_the_first_time_of_its_grid() -> None:
    assert indices(UniformTimes(), 1, 30) == indices(TrailingTimes(), 1, 30) == [29]
    assert indices(LeadingTimes(), 1, 30) == indices(QuadraticTimes(), 1, 30) == [0]
    assert KarrasTimes()(EDMSchedule(), 1) == pytest.approx([80.0])
    assert LogSNRTimes()(VPSchedule(), 1) == pytest.approx([1.0])


def test_listed_times_are_unchanged() -> None:
    assert ListedTimes([0.9, 0.4, 0.1])(LinearSchedule(10), 3) == (0.9, 0.4, 0.1)
    assert ListedTimes([0.9, 0.4, 0.1])(LinearSchedule(10), None) == (0.9, 0.4, 0.1)


@pytest.mark.parametrize(
    ("grid", "schedule", "num_steps", "message"),
    [
        (SectionTimes([10, 10]), EDMSchedule(), 20, r"discrete steps .* time grid SectionTimes .*, got .* EDMSchedule"),
        (SectionTimes([10, 10]), LinearSchedule(1000), 25, r"num_steps must be 20 \(the sum of counts\) or a number"),
        (DDIMTimes(), LinearSchedule(1000), 300, r"num_steps must be .* gives, such as 250 or 334 of 1000, .* got 300"),
        (DDIMTimes(), EDMSchedule(), 20, r"discrete steps .* time grid DDIMTimes .*, got .* EDMSchedule"),
        (SectionTimes([30, 1]), LinearSchedule(20), None, r"counts, .*, must be in 1\.\.10 .* section\), got 30"),
        (SectionTimes([10, 0]), LinearSchedule(20), None, r"counts must be in 1\.\.10 .* of a section\), got 0"),
        (SectionTimes([0]), LinearSchedule(20), None, "counts must be"),
        (ListedTimes([0.9, 0.4]), LinearSchedule(10), 3, r"num_steps must be 2 \(the number of listed times\), got 3"),
        (KarrasTimes(sigma_min=90.0), EDMSchedule(), 9, "sigma_min must be above 0 and below sigma_max=80, got 90"),
        (KarrasTimes(sigma_min=-1.0), EDMSchedule(), 9, "sigma_min must be above 0 and below sigma_max=80, got -1"),
        (KarrasTimes(sigma_min=0.0), EDMSchedule(), 9, "sigma_min must be above 0 and below sigma_max=80, got 0"),
    ],
    ids=str,
)
def test_grids_that_do_not_suit_the_schedule_are_refused(
    grid: TimeGrid, schedule: NoiseSchedule, num_steps: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid(schedule, num_steps)


@pytest.mark.parametrize("reach", [0.0, -0.5, 1.1, math.nan])
def test_a_reach_out_of_range_is_refused(reach: float) -> None:
    with pytest.raises(ValueError, match=rf"reach must be in \(0, 1\], got {reach}"):
        QuadraticTimes(reach)


@pytest.mark.parametrize("rho", [0.0, -7.0])
def test_rho_that_is_not_above_0_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match=f"rho must be above 0, got {rho}"):
        KarrasTimes(rho)

"""Laws of all time grids, on every schedule and for any number of steps."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusion_lab.networks import Condition
from diffusion_lab.process import (
    CosineSchedule,
    EDMSchedule,
    GaussianProcess,
    JSDSchedule,
    LinearSchedule,
    NoiseSchedule,
    RectifiedFlowSchedule,
    SigmoidSchedule,
    VESchedule,
    VPSchedule,
)
from diffusion_lab.samplers import (
    DDIM,
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
from support.oracles import GaussianOracle, RecordedNoise, walk

GRIDS = [UniformTimes(), TrailingTimes(), LeadingTimes(), QuadraticTimes(), KarrasTimes(), LogSNRTimes()]
TABLES = [LinearSchedule, CosineSchedule, SigmoidSchedule, JSDSchedule]
CONTINUOUS = [VPSchedule(), VESchedule(), EDMSchedule(), RectifiedFlowSchedule()]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: type(grid).__name__)
every_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)


def is_valid(times: tuple[float, ...], schedule: NoiseSchedule, num_steps: int) -> bool:
    GaussianProcess(schedule).validate_times(times)
    return len(times) == num_steps and all(t > s for t, s in pairwise(times)) and times[0] <= schedule.t_max


@every_grid
@every_table
@settings(max_examples=15)
@given(num_timesteps=st.integers(3, 300), data=st.data())
def test_grids_are_valid_for_any_number_of_steps_of_a_table(
    grid: TimeGrid, table: type[LinearSchedule] | type[JSDSchedule], num_timesteps: int, data: st.DataObject
) -> None:
    schedule = table(num_timesteps)
    num_steps = data.draw(st.integers(1, num_timesteps))
    assert is_valid(grid(schedule, num_steps), schedule, num_steps)


@every_grid
@every_table
@pytest.mark.parametrize("num_timesteps", [3, 40, 1000])
def test_grids_of_all_steps_of_a_table_are_the_table(
    grid: TimeGrid, table: type[LinearSchedule] | type[JSDSchedule], num_timesteps: int
) -> None:
    every = tuple(k / num_timesteps for k in range(num_timesteps, 0, -1))
    assert grid(table(num_timesteps), num_timesteps) == every
    assert grid(table(num_timesteps), None) == every


@every_grid
@pytest.mark.parametrize("num_timesteps", [3, 50, 1000])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_grids_are_valid_for_a_table_without_signal_at_its_end(
    grid: TimeGrid, num_timesteps: int, num_steps: int
) -> None:
    schedule = CosineSchedule(num_timesteps, zero_terminal_snr=True)
    assert is_valid(grid(schedule, num_steps), schedule, num_steps)


@every_grid
@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda schedule: type(schedule).__name__)
@settings(max_examples=15)
@given(num_steps=st.integers(1, 3000))
@example(num_steps=1000)
@example(num_steps=2500)
def test_grids_are_valid_for_any_number_of_steps_of_a_continuous_schedule(
    grid: TimeGrid, schedule: NoiseSchedule, num_steps: int
) -> None:
    assert is_valid(grid(schedule, num_steps), schedule, num_steps)


@given(st.integers(1, 400), st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_sections_of_any_size_are_valid(extra: int, counts: list[int]) -> None:
    schedule = LinearSchedule(len(counts) * 8 + extra)
    times = SectionTimes(counts)(schedule, None)
    assert is_valid(times, schedule, sum(counts))
    assert times[-1] == schedule.t_min


@every_grid
def test_more_steps_than_the_table_has_are_refused(grid: TimeGrid) -> None:
    with pytest.raises(ValueError, match="num_steps must be at most the schedule's 30 steps, got 31"):
        grid(LinearSchedule(30), 31)


@every_grid
@pytest.mark.parametrize("num_steps", [0, -2, 2.5, True])
@pytest.mark.parametrize("schedule", [LinearSchedule(30), VPSchedule()], ids=str)
def test_a_number_of_steps_below_1_or_with_a_fraction_is_refused(
    grid: TimeGrid, schedule: NoiseSchedule, num_steps: int
) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be a whole number of at least 1, got {num_steps}"):
        grid(schedule, num_steps)


@every_grid
def test_num_steps_none_is_refused_for_a_continuous_schedule(grid: TimeGrid) -> None:
    with pytest.raises(ValueError, match="num_steps must be given for the continuous EDMSchedule, got None"):
        grid(EDMSchedule(), None)


def test_the_end_of_each_step_is_read_from_the_list() -> None:
    # 10 uniform steps of 1000 have the indices 999, 888, ...; a stride of 1000 // 10 below 999 would be 899.
    sampler = DDIM(GaussianProcess(LinearSchedule()), num_steps=10)
    t, s = sampler.intervals()
    assert (t * 1000 - 1).round().tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert (s[:-1] * 1000 - 1).round().tolist() == [888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert float(s[-1]) == 0


@pytest.mark.parametrize("num_steps", [1, 21, 30])
@pytest.mark.parametrize("grid", [UniformTimes(), LeadingTimes(), TrailingTimes()], ids=str)
def test_there_are_num_steps_steps_and_the_last_ends_at_the_clean_image(grid: TimeGrid, num_steps: int) -> None:
    # A last step to the noise level of index 0 would leave a hundredth of the noise in the image.
    process = GaussianProcess(LinearSchedule())
    sampler = DDIM(process, num_steps=num_steps, time_grid=grid)
    visited, estimates = walk(sampler, GaussianOracle(process, 0.0, 0.3), RecordedNoise((2, 3, 8, 6)))
    assert len(visited) == num_steps
    torch.testing.assert_close(visited[-1], estimates[-1], rtol=0, atol=1e-12)


def test_each_step_ends_at_the_next_time_of_an_uneven_list() -> None:
    process = GaussianProcess(RectifiedFlowSchedule())
    oracle, listed = GaussianOracle(process, 0.3, 0.5), ListedTimes([0.9, 0.85, 0.2])
    visited, estimates = walk(DDIM(process, 3, time_grid=listed), oracle, RecordedNoise((2, 3, 8, 6)))
    noise = (visited[0] - 0.15 * estimates[0]) / 0.85
    again = oracle(visited[0], torch.full((2,), 0.85, dtype=torch.float64), Condition()).x_0
    torch.testing.assert_close(estimates[1], again.clamp(-1, 1))
    torch.testing.assert_close(visited[1], 0.8 * estimates[1] + 0.2 * (visited[0] - 0.15 * estimates[1]) / 0.85)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.15)

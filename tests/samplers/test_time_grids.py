from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.process import LinearSchedule
from diffusion_lab.samplers import ListedTimes, UniformTimes


def indices(num_steps: int, num_timesteps: int = 1000) -> list[int]:
    """The step indices k - 1 that are visited, from data to noise as the papers list them."""
    times = UniformTimes()(LinearSchedule(num_timesteps), num_steps)
    return [round(t * num_timesteps) - 1 for t in reversed(times)]


def test_250_of_1000_steps_are_those_of_nichol_and_dhariwal() -> None:
    visited = indices(250)
    assert len(visited) == 250
    assert (visited[:3], visited[-3:]) == ([0, 4, 8], [991, 995, 999])


def test_100_of_1000_steps_are_those_of_nichol_and_dhariwal() -> None:
    visited = indices(100)
    assert len(visited) == 100
    assert (visited[:3], visited[-3:]) == ([0, 10, 20], [979, 989, 999])


@pytest.mark.parametrize("num_steps", [3, 10, 25, 37, 50, 75, 100, 250, 1000])
def test_all_indices_are_rounded_as_nichol_and_dhariwal_round_them(num_steps: int) -> None:
    stride = 999 / (num_steps - 1)  # their space_timesteps: strides that end in .5 go to the even index
    assert indices(num_steps) == [round(stride * i) for i in range(num_steps)]


def test_as_many_steps_as_the_table_has_are_all_of_them() -> None:
    assert indices(30, 30) == list(range(30))


def test_a_single_step_is_the_last_of_the_table() -> None:
    assert UniformTimes()(LinearSchedule(30), 1) == (1.0,)


@given(st.integers(2, 4000), st.data())
def test_any_number_of_steps_falls_from_the_last_time_to_the_first(num_timesteps: int, data: st.DataObject) -> None:
    visited = indices(data.draw(st.integers(2, num_timesteps)), num_timesteps)
    assert (visited[0], visited[-1]) == (0, num_timesteps - 1)
    assert all(before < after for before, after in pairwise(visited))


@pytest.mark.parametrize("num_steps", [31, 60])
def test_more_steps_than_the_table_has_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be at most the schedule's 30 steps, got {num_steps}"):
        UniformTimes()(LinearSchedule(30), num_steps)


@pytest.mark.parametrize("num_steps", [0, -2])
def test_fewer_than_one_step_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {num_steps}"):
        UniformTimes()(LinearSchedule(30), num_steps)


def test_listed_times_are_visited_as_they_are_listed() -> None:
    assert ListedTimes([0.9, 0.4, 0.1])(LinearSchedule(10), 3) == (0.9, 0.4, 0.1)


def test_another_number_of_steps_than_listed_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps must be 3, the number of listed times, got 2"):
        ListedTimes([0.9, 0.4, 0.1])(LinearSchedule(10), 2)

"""A run that is killed at any point and resumed gives bitwise the same metrics and the same state."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from support.killed_runs import NUM_STEPS, Layout, Recipe, outcome, run


def assert_same(one: Any, other: Any) -> None:
    """Assert that two states of checkpoints are bitwise equal."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for item, other_item in zip(one, other, strict=True):
            assert_same(item, other_item)
    else:
        assert one == other


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    (rows, state), (expected_rows, expected_state) = outcome(folder), outcome(uninterrupted)
    assert len(rows) == 1 + NUM_STEPS
    assert rows == expected_rows
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(state[part], expected_state[part])


@dataclass(frozen=True)
class Uninterrupted:
    """A run that was never stopped, and its duration."""

    folder: Path
    seconds: float


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Layout], Uninterrupted]:
    """Return a function that trains each layout once, without interruption."""

    @cache
    def trained(layout: Layout) -> Uninterrupted:
        folder, started = tmp_path_factory.mktemp("uninterrupted"), time.monotonic()
        assert run(folder, layout)
        return Uninterrupted(folder, time.monotonic() - started)

    return trained


@pytest.mark.parametrize(
    ("layout", "death"),
    [
        (Layout(), "kill_after"),
        pytest.param(Layout(), "hang_up_after", marks=pytest.mark.full),  # the terminal is closed
        pytest.param(Layout(num_processes=2), "kill_after", marks=pytest.mark.full),
        pytest.param(Layout(num_processes=2), "hang_up_after", marks=pytest.mark.full),
    ],
    ids=str,
)
def test_a_run_that_dies_at_any_time_and_is_resumed_equals_an_uninterrupted_run(
    layout: Layout, death: str, uninterrupted: Callable[[Layout], Uninterrupted], tmp_path: Path
) -> None:
    rng = random.Random(str(layout))
    run(tmp_path, layout, **{death: rng.uniform(0.2, 1) * uninterrupted(layout).seconds})
    assert run(tmp_path, layout)
    assert_same_run(tmp_path, uninterrupted(layout).folder)


def test_a_run_killed_while_writing_a_checkpoint_resumes_from_the_previous_one(
    uninterrupted: Callable[[Layout], Uninterrupted], tmp_path: Path
) -> None:
    for number in (0, 3):  # 0: there is no checkpoint yet
        assert not run(tmp_path, Layout(), die_in_write=number)
    assert (tmp_path / "last.ckpt.partial").is_file()
    assert torch.load(tmp_path / "last.ckpt")["global_step"] == 9
    assert run(tmp_path, Layout())
    assert_same_run(tmp_path, uninterrupted(Layout()).folder)


@pytest.mark.full
def test_a_run_whose_disk_is_full_while_it_writes_a_checkpoint_keeps_the_previous_one(
    uninterrupted: Callable[[Layout], Uninterrupted], tmp_path: Path
) -> None:
    for number in (0, 2, 1):  # 0: there is no checkpoint yet
        assert not run(tmp_path, Layout(), full_disk_in_write=number)
        assert not list(tmp_path.glob("*.partial"))
    assert torch.load(tmp_path / "last.ckpt")["global_step"] == 9
    assert run(tmp_path, Layout())
    assert_same_run(tmp_path, uninterrupted(Layout()).folder)


@pytest.mark.full
def test_a_run_stopped_between_two_checkpoints_repeats_the_steps_since_the_first(
    uninterrupted: Callable[[Layout], Uninterrupted], tmp_path: Path
) -> None:
    assert run(tmp_path, Layout(), recipe=Recipe(num_steps=8))
    assert run(tmp_path, Layout())
    assert_same_run(tmp_path, uninterrupted(Layout()).folder)


@pytest.mark.full
@pytest.mark.parametrize("layout", [Layout(*parts) for parts in product((48, 50), (0, 2), (1, 2), (1, 2))], ids=str)
def test_runs_of_all_layouts_killed_and_resumed_equal_uninterrupted_runs(
    layout: Layout, uninterrupted: Callable[[Layout], Uninterrupted], tmp_path: Path
) -> None:
    rng = random.Random(str(layout))
    for number in range(6):
        killed = tmp_path / f"killed_{number}"
        run(killed, layout, kill_after=rng.uniform(0.1, 1.1) * uninterrupted(layout).seconds)
        run(killed, layout, die_in_write=rng.randrange(3))
        run(killed, layout, hang_up_after=rng.uniform(0.1, 1.1) * uninterrupted(layout).seconds)
        run(killed, layout, full_disk_in_write=rng.randrange(3))
        assert run(killed, layout)
        assert_same_run(killed, uninterrupted(layout).folder)

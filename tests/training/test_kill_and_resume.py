"""A run that was stopped anywhere and resumed comes to the same numbers and the same state, bit for bit."""

import random
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from support.killed_runs import NUM_STEPS, Layout, Recipe, outcome, run


def assert_same(one: Any, other: Any) -> None:
    """Every number in two checkpoints' states is the same to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_same(mine, its)
    else:
        assert one == other


def assert_same_run(folder: Path, whole: Path) -> None:
    (rows, state), (rows_of_whole, state_of_whole) = outcome(folder), outcome(whole)
    assert len(rows) == 1 + NUM_STEPS
    assert rows == rows_of_whole
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(state[part], state_of_whole[part])


def whole_run(folder: Path, layout: Layout) -> float:
    """Trains without a stop; the seconds it took."""
    started = time.monotonic()
    assert run(folder, layout)
    return time.monotonic() - started


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(size=48, num_workers=2, accumulate=2), Layout(num_processes=2)], ids=str
)
def test_killed_at_any_moment_and_resumed_is_never_killed(layout: Layout, tmp_path: Path) -> None:
    seconds = whole_run(tmp_path / "whole", layout)
    killed, moments = tmp_path / "killed", random.Random(str(layout))
    for _ in range(3):
        run(killed, layout, kill_after=moments.uniform(0.2, 1) * seconds)
    assert run(killed, layout)
    assert_same_run(killed, tmp_path / "whole")


def test_killed_while_a_checkpoint_is_written_goes_on_from_the_one_before(tmp_path: Path) -> None:
    whole_run(tmp_path / "whole", Layout())
    killed = tmp_path / "killed"
    for number in (0, 2, 1):  # 0: nothing was kept yet
        assert not run(killed, Layout(), die_in_write=number)
    assert (killed / "last.ckpt.partial").is_file()
    assert torch.load(killed / "last.ckpt")["global_step"] == 9
    assert run(killed, Layout())
    assert_same_run(killed, tmp_path / "whole")


def test_a_run_that_was_stopped_between_two_saves_repeats_the_steps_since(tmp_path: Path) -> None:
    whole_run(tmp_path / "whole", Layout())
    assert run(tmp_path / "shorter", Layout(), recipe=Recipe(num_steps=8))
    assert run(tmp_path / "shorter", Layout())
    assert_same_run(tmp_path / "shorter", tmp_path / "whole")


@pytest.mark.full
@pytest.mark.parametrize("layout", [Layout(*parts) for parts in product((48, 50), (0, 2), (1, 2), (1, 2))], ids=str)
def test_every_layout_killed_often_is_never_killed(layout: Layout, tmp_path: Path) -> None:
    seconds = whole_run(tmp_path / "whole", layout)
    moments = random.Random(str(layout))
    for number in range(6):
        killed = tmp_path / f"killed_{number}"
        run(killed, layout, kill_after=moments.uniform(0.1, 1.1) * seconds)
        run(killed, layout, die_in_write=moments.randrange(3))
        assert run(killed, layout)
        assert_same_run(killed, tmp_path / "whole")

"""Intervals at which callbacks act."""

import pytest

from diffusion_lab.callbacks.every import Every


def test_is_due_once_at_each_multiple_and_at_each_listed_step() -> None:
    every = Every(4, also_at=[3])
    # with accumulation, several batches end at the same optimizer step
    assert [step for step in [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 8, 8] if every.due(step)] == [3, 4, 8]


def test_is_due_at_the_end_of_a_run_unless_it_was_due_at_the_last_step() -> None:
    every = Every(4)
    assert every.due(4)
    assert not every.due_at_end(4)
    assert every.due_at_end(6)
    assert not Every(4).due_at_end(0)


def test_is_not_due_at_the_step_from_which_a_run_resumes() -> None:
    every = Every(4)
    every.start_at(8)
    assert [step for step in [8, 8, 9, 12] if every.due(step)] == [12]
    every.start_at(9)
    assert not every.due_at_end(9)


def test_an_interval_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        Every(0)

"""When callbacks act."""

import pytest

from diffusion_lab.callbacks.every import Every


def test_acts_once_a_step_at_multiples_and_at_the_listed_steps() -> None:
    every = Every(4, also_at=[3])
    # with accumulation the same optimiser step ends several batches
    assert [step for step in [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 8, 8] if every.due(step)] == [3, 4, 8]


def test_a_run_that_ends_between_two_acts_has_one_left_over() -> None:
    every = Every(4)
    assert every.due(4)
    assert not every.left_over(4)
    assert every.left_over(6)
    assert not Every(4).left_over(0)


def test_what_was_due_where_a_resumed_run_begins_was_done_before() -> None:
    every = Every(4)
    every.start_at(8)
    assert [step for step in [8, 8, 9, 12] if every.due(step)] == [12]
    every.start_at(9)
    assert not every.left_over(9)


def test_a_distance_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        Every(0)

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.data.step_sampler import MicroBatch, StepSampler

LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1)]


def micro_batches(num_steps: int, size: int = 50, batch_size: int = 12, **layout: int) -> list[MicroBatch]:
    """Return the micro-batches of the first steps of one rank."""
    sampler = StepSampler(size, batch_size=batch_size, seed=3, **layout)
    return list(islice(sampler, num_steps * layout.get("accumulate", 1)))


def indices(batches: list[MicroBatch]) -> list[int]:
    return [int(index) for batch in batches for index in batch.index]


@given(st.integers(1, 30), st.integers(1, 40))
def test_each_epoch_contains_each_image_once(size: int, batch_size: int) -> None:
    sequence = indices(micro_batches(-(-3 * size // batch_size), size, batch_size))[: 3 * size]
    assert [sorted(sequence[start : start + size]) for start in range(0, 3 * size, size)] == [list(range(size))] * 3


def test_each_epoch_has_a_different_order() -> None:
    sequence = indices(micro_batches(10, size=20, batch_size=4))
    assert sequence[:20] != sequence[20:40]


def test_each_seed_has_a_different_order() -> None:
    orders = [next(iter(StepSampler(50, batch_size=50, seed=seed))).index.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize(("world_size", "accumulate"), LAYOUTS)
def test_micro_batches_of_all_ranks_together_are_the_batch_of_one_rank(world_size: int, accumulate: int) -> None:
    ranks = [micro_batches(9, rank=rank, world_size=world_size, accumulate=accumulate) for rank in range(world_size)]
    for step, global_batch in enumerate(micro_batches(9)):
        parts = [batches[step * accumulate + k] for k in range(accumulate) for batches in ranks]
        assert {part.step for part in parts} == {step}
        assert [position for part in parts for position in part.positions] == list(range(12))
        assert indices(parts) == global_batch.index.tolist()


@pytest.mark.parametrize(("world_size", "accumulate"), LAYOUTS)
def test_a_resumed_run_continues_the_sequence(world_size: int, accumulate: int) -> None:
    layout = {"rank": world_size - 1, "world_size": world_size, "accumulate": accumulate}
    complete, resumed = micro_batches(11, **layout), micro_batches(4, first_step=7, **layout)
    assert [batch.step for batch in resumed] == [batch.step for batch in complete[7 * accumulate :]]
    assert indices(resumed) == indices(complete[7 * accumulate :])


def test_each_iterator_of_a_sampler_starts_at_the_first_step() -> None:
    sampler = StepSampler(20, batch_size=8, seed=3)
    first: Iterator[MicroBatch] = iter(sampler)
    assert indices(list(islice(first, 6))) == indices(list(islice(sampler, 6)))


def test_a_batch_larger_than_the_set_contains_images_of_several_epochs() -> None:
    (batch,) = micro_batches(1, size=5, batch_size=12)
    assert batch.index.dtype == np.int64
    assert sorted(batch.index[:5].tolist()) == sorted(batch.index[5:10].tolist()) == [0, 1, 2, 3, 4]
    assert len(batch.index) == len(batch.positions) == 12


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(12, 5, 1), (12, 2, 4), (0, 1, 1)])
def test_a_batch_size_that_is_not_divisible_is_refused(batch_size: int, world_size: int, accumulate: int) -> None:
    message = rf"data.batch_size.* divisible by .*\({world_size} \* {accumulate}\), got {batch_size}"
    with pytest.raises(ValueError, match=message):
        StepSampler(50, batch_size=batch_size, seed=3, world_size=world_size, accumulate=accumulate)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="the training set must contain at least 1 image, got 0"):
        StepSampler(0, batch_size=12, seed=3)

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.data.step_sampler import Share, StepSampler

LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1)]


def shares(num_steps: int, size: int = 50, batch_size: int = 12, **layout: int) -> list[Share]:
    """What one process meets in its first steps."""
    sampler = StepSampler(size, batch_size=batch_size, seed=3, **layout)
    return list(islice(sampler, num_steps * layout.get("accumulate", 1)))


def indices(met: list[Share]) -> list[int]:
    return [int(index) for share in met for index in share.index]


@given(st.integers(1, 30), st.integers(1, 40))
def test_each_epoch_visits_each_image_once(size: int, batch_size: int) -> None:
    sequence = indices(shares(-(-3 * size // batch_size), size, batch_size))[: 3 * size]
    assert [sorted(sequence[start : start + size]) for start in range(0, 3 * size, size)] == [list(range(size))] * 3


def test_each_epoch_has_an_order_of_its_own() -> None:
    sequence = indices(shares(10, size=20, batch_size=4))
    assert sequence[:20] != sequence[20:40]


def test_each_seed_has_an_order_of_its_own() -> None:
    orders = [next(iter(StepSampler(50, batch_size=50, seed=seed))).index.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize(("world_size", "accumulate"), LAYOUTS)
def test_all_processes_together_train_on_the_batch_of_one(world_size: int, accumulate: int) -> None:
    ranks = [shares(9, rank=rank, world_size=world_size, accumulate=accumulate) for rank in range(world_size)]
    for step, whole in enumerate(shares(9)):
        parts = [met[step * accumulate + k] for k in range(accumulate) for met in ranks]
        assert {part.step for part in parts} == {step}
        assert [position for part in parts for position in part.positions] == list(range(12))
        assert indices(parts) == whole.index.tolist()


@pytest.mark.parametrize(("world_size", "accumulate"), LAYOUTS)
def test_a_run_goes_on_where_it_stopped(world_size: int, accumulate: int) -> None:
    layout = {"rank": world_size - 1, "world_size": world_size, "accumulate": accumulate}
    whole, resumed = shares(11, **layout), shares(4, first_step=7, **layout)
    assert [share.step for share in resumed] == [share.step for share in whole[7 * accumulate :]]
    assert indices(resumed) == indices(whole[7 * accumulate :])


def test_a_sampler_starts_afresh_each_time_it_is_asked() -> None:
    sampler = StepSampler(20, batch_size=8, seed=3)
    first: Iterator[Share] = iter(sampler)
    assert indices(list(islice(first, 6))) == indices(list(islice(sampler, 6)))


def test_a_batch_larger_than_the_set_takes_images_of_several_epochs() -> None:
    (share,) = shares(1, size=5, batch_size=12)
    assert share.index.dtype == np.int64
    assert sorted(share.index[:5].tolist()) == sorted(share.index[5:10].tolist()) == [0, 1, 2, 3, 4]
    assert len(share.index) == len(share.positions) == 12


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(12, 5, 1), (12, 2, 4), (0, 1, 1)])
def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(batch_size: int, world_size: int, accumulate: int) -> None:
    message = rf"data.batch_size .* divisible by .* {world_size} \* {accumulate}, got {batch_size}"
    with pytest.raises(ValueError, match=message):
        StepSampler(50, batch_size=batch_size, seed=3, world_size=world_size, accumulate=accumulate)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="the training set must hold at least 1 image, got 0"):
        StepSampler(0, batch_size=12, seed=3)

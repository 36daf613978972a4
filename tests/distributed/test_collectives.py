from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.distributed.collectives import Ranks
from support.ranks import run_on_ranks


def shard_and_gather() -> dict[str, Any]:
    ranks = Ranks.current()
    own = ranks.shard(range(100, 107))
    rows = torch.tensor([[float(k), 2.0 * k] for k in own]).reshape(-1, 2)
    if ranks.rank == 1:
        rows = rows[:0]  # a rank without rows
    return {
        "rank": ranks.rank,
        "shard": list(own),
        "gathered": ranks.all_gather(rows),
        "sum": ranks.all_reduce_sum(torch.tensor([1.0, 10.0 * ranks.rank])),
        "objects": ranks.all_gather_object(f"rank {ranks.rank}"),
    }


def test_a_single_rank_has_all_items(tmp_path: Path) -> None:
    (result,) = run_on_ranks(1, shard_and_gather, tmp_path)
    assert result["shard"] == list(range(100, 107))
    assert result["gathered"][:, 0].tolist() == result["shard"]
    assert result["objects"] == ["rank 0"]


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_are_an_ordered_partition_and_collectives_agree_on_all_ranks(world_size: int, tmp_path: Path) -> None:
    results = run_on_ranks(world_size, shard_and_gather, tmp_path)
    assert [result["rank"] for result in results] == list(range(world_size))
    assert [number for result in results for number in result["shard"]] == list(range(100, 107))
    sizes = [len(result["shard"]) for result in results]
    assert max(sizes) - min(sizes) <= 1
    expected = [number for result in results if result["rank"] != 1 for number in result["shard"]]
    for result in results:
        assert result["gathered"][:, 0].tolist() == expected
        assert result["sum"].tolist() == [world_size, sum(10.0 * rank for rank in range(world_size))]
        assert result["objects"] == [f"rank {rank}" for rank in range(world_size)]


def test_more_ranks_than_items_give_empty_shards() -> None:
    shards = [list(Ranks(rank, 5).shard(range(3))) for rank in range(5)]
    assert [number for shard in shards for number in shard] == [0, 1, 2]
    assert [] in shards


def fail_on_the_last_rank(message: str) -> tuple[str, int]:
    ranks, done = Ranks.current(), 0
    try:
        with ranks.raise_together():
            done += 1
            if ranks.rank == ranks.world_size - 1:
                raise ValueError(message)
    except ValueError as error:
        return str(error), done
    return "no error", done


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_error_on_one_rank_is_raised_on_all_ranks(world_size: int, tmp_path: Path) -> None:
    results = run_on_ranks(world_size, fail_on_the_last_rank, tmp_path, "images must be finite")
    assert results == [("images must be finite", 1)] * world_size


def test_raise_together_has_no_effect_without_an_error() -> None:
    with Ranks().raise_together():
        done = True
    assert done

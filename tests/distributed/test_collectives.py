from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.distributed.collectives import Ranks
from support.ranks import on_processes


def share_and_gather() -> dict[str, Any]:
    ranks = Ranks.current()
    own = ranks.shard(range(100, 107))
    rows = torch.tensor([[float(k), 2.0 * k] for k in own]).reshape(-1, 2)
    if ranks.rank == 1:
        rows = rows[:0]  # nothing to add
    return {
        "rank": ranks.rank,
        "share": list(own),
        "gathered": ranks.all_gather(rows),
        "total": ranks.all_reduce_sum(torch.tensor([1.0, 10.0 * ranks.rank])),
        "everyone": ranks.all_gather_object(f"rank {ranks.rank}"),
    }


def test_one_process_has_everything(tmp_path: Path) -> None:
    (alone,) = on_processes(1, share_and_gather, tmp_path)
    assert alone["share"] == list(range(100, 107))
    assert alone["gathered"][:, 0].tolist() == alone["share"]
    assert alone["everyone"] == ["rank 0"]


@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_a_partition_in_order_and_all_know_the_same(count: int, tmp_path: Path) -> None:
    answers = on_processes(count, share_and_gather, tmp_path)
    assert [answer["rank"] for answer in answers] == list(range(count))
    assert [number for answer in answers for number in answer["share"]] == list(range(100, 107))
    sizes = [len(answer["share"]) for answer in answers]
    assert max(sizes) - min(sizes) <= 1
    expected = [number for answer in answers if answer["rank"] != 1 for number in answer["share"]]
    for answer in answers:
        assert answer["gathered"][:, 0].tolist() == expected
        assert answer["total"].tolist() == [count, sum(10.0 * rank for rank in range(count))]
        assert answer["everyone"] == [f"rank {rank}" for rank in range(count)]


def test_more_processes_than_items_leave_some_without() -> None:
    shares = [list(Ranks(rank, 5).shard(range(3))) for rank in range(5)]
    assert [number for share in shares for number in share] == [0, 1, 2]
    assert [] in shares


def one_fails(message: str) -> tuple[str, int]:
    ranks, done = Ranks.current(), 0
    try:
        with ranks.raise_together():
            done += 1
            if ranks.rank == ranks.world_size - 1:
                raise ValueError(message)
    except ValueError as error:
        return str(error), done
    return "nothing", done


@pytest.mark.parametrize("count", [1, 2])
def test_what_one_process_cannot_do_ends_the_others_too(count: int, tmp_path: Path) -> None:
    """Without waiting for ever for what that one would have told."""
    assert on_processes(count, one_fails, tmp_path, "images must be finite") == [("images must be finite", 1)] * count


def test_work_that_all_can_do_is_left_alone() -> None:
    with Ranks().raise_together():
        done = True
    assert done

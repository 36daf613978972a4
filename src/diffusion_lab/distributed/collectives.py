"""The processes of one job, whoever started them: what each does, and what all know afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Ranks:
    """rank: of this process, in 0..world_size - 1."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Those that torch.distributed knows; this one alone where it was never started."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def shard(self, items: Sequence[Kind]) -> Sequence[Kind]:
        """The items of this process: a row of neighbours, without padding or repeats, in the order of the ranks."""
        size = len(items)
        return items[self.rank * size // self.world_size : (self.rank + 1) * size // self.world_size]

    def all_gather(self, rows: Tensor) -> Tensor:
        """All processes' rows [n, ...] one after the other, [N, ...], on the CPU of each.

        Every process must ask, also one without rows.
        """
        if self.world_size == 1:
            return rows.cpu()
        counts = self.all_gather_object(len(rows))
        padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=_device())
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:count].cpu() for part, count in zip(gathered, counts, strict=True)])

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        """The sum of all processes' sums, the same on each, on the CPU."""
        if self.world_size == 1:
            return sums.cpu()
        summed = sums.to(_device(), copy=True)
        dist.all_reduce(summed)
        return summed.cpu()

    def all_reduce_mean(self, number: Tensor) -> Tensor:
        """The mean of all processes' numbers [], the same on each, on the device, which is not waited for."""
        if self.world_size == 1:
            return number
        summed = number.clone()
        dist.all_reduce(summed)  # Lightning's own reduction has all processes wait for each other first
        return summed / self.world_size

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """A part of the work after which all go on, or none: a ValueError of one is raised by all.

        Otherwise the others would wait for what the one that failed has to tell. Every process must come here.
        """
        failure = None
        try:
            yield
        except ValueError as error:
            failure = error
        said = [
            reason for reason in self.all_gather_object(None if failure is None else str(failure)) if reason is not None
        ]
        if said:
            raise ValueError(said[0]) from failure

    def all_gather_object(self, value: Kind) -> list[Kind]:
        """What each process says, in the order of the ranks, the same list for all."""
        if self.world_size == 1:
            return [value]
        said: list[Kind] = [value] * self.world_size
        dist.all_gather_object(said, value)
        return said


def _device() -> torch.device:
    """Where tensors must be for the processes to exchange them."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")

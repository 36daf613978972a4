"""Rank and world size of a process, and collective operations, for any launcher."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from diffusion_lab.distributed.signals import OF_OTHER_RANK, StoppedBySignal, interruptible

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, in 0..world_size - 1, and the world size."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Return the ranks of torch.distributed, or a single rank if torch.distributed is not initialized."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this rank's contiguous slice of the items; the slices of all ranks contain each item exactly once."""
        size = len(items)
        return items[self.rank * size // self.world_size : (self.rank + 1) * size // self.world_size]

    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenate the tensors of all ranks along the first dimension.  Returns a tensor [N, ...] on the CPU.

        rows: tensor of this rank, [n, ...]; n may be 0 and may differ between the ranks, and N is the sum of all n.
        Collective: call it on all ranks.
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
        """Return the elementwise sum of `sums` over all ranks, on the CPU. Collective: call it on all ranks."""
        if self.world_size == 1:
            return sums.cpu()
        summed = sums.to(_device(), copy=True)
        dist.all_reduce(summed)
        return summed.cpu()

    def all_reduce_mean(self, number: Tensor) -> Tensor:
        """Return the mean of `number` over all ranks, in the shape and on the device of `number`.

        The host does not wait for the device. Collective: call it on all ranks.
        """
        if self.world_size == 1:
            return number
        summed = number.clone()
        dist.all_reduce(summed)  # Lightning's reduction adds a barrier
        return summed / self.world_size

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Raise a ValueError or StoppedBySignal on all ranks if one rank raises it inside the context.

        Without the context, the other ranks would wait for the failed rank in their next collective. A signal to a
        training run stops the work in the context at once.
        Collective: enter the context on all ranks.
        """
        failure: ValueError | StoppedBySignal | None = None
        try:
            with interruptible():
                yield
        except (ValueError, StoppedBySignal) as error:
            failure = error
        failures = [other for other in self.all_gather_object(_as_tuple(failure)) if other is not None]
        stops = [stop for kind, *stop in failures if kind == "stop"]
        if stops:  # a signal of another rank only repeats the signal that this rank received
            number, step = next((stop for stop in stops if stop[0] != OF_OTHER_RANK), stops[0])
            raise StoppedBySignal(number, step) from failure
        if failures:
            raise ValueError(failures[0][1]) from failure

    def all_gather_object(self, value: Item) -> list[Item]:
        """Return a list with `value` from each rank, in the order of the ranks. Collective: call it on all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Item] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values


def _as_tuple(failure: ValueError | StoppedBySignal | None) -> tuple[Any, ...] | None:
    if isinstance(failure, StoppedBySignal):
        return "stop", failure.number, failure.step
    return None if failure is None else ("error", str(failure))


def _device() -> torch.device:
    """Return the device that the collectives of the backend require."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")

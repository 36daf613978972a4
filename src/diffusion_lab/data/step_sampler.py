"""Step number -> the images of the global batch that this process trains on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from diffusion_lab.randomness import permutation


@dataclass(frozen=True)
class Share:
    """One micro-batch.  index: of the images, int64 [B].  positions: where they stand in the step's global batch."""

    step: int
    positions: range
    index: np.ndarray


class StepSampler(Sampler[Share]):
    """An endless sequence of micro-batches that is a function of the seed alone.

    The order of training is one infinite sequence: number p is image p % size of epoch p // size, each epoch with its
    own permutation. Step n takes the numbers n * batch_size ... (n + 1) * batch_size - 1, whatever the layout: its
    global batch is cut first by accumulation, then by process.
    """

    def __init__(
        self, size: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1,
        first_step: int = 0,
    ) -> None:  # fmt: skip
        if size < 1:
            raise ValueError(f"the training set must hold at least 1 image, got {size}.")
        require_even_shares(batch_size, world_size, accumulate)
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.accumulate, self.first_step = rank, world_size, accumulate, first_step
        self._epochs: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[Share]:
        share = self.batch_size // (self.world_size * self.accumulate)
        step = self.first_step
        while True:
            for micro_batch in range(self.accumulate):
                start = (micro_batch * self.world_size + self.rank) * share
                positions = range(start, start + share)
                yield Share(step, positions, self._index(step, positions))
            step += 1

    def _index(self, step: int, positions: range) -> np.ndarray:
        number = step * self.batch_size + np.arange(positions.start, positions.stop)
        epoch, place = np.divmod(number, self.size)
        if epoch[0] == epoch[-1]:
            return self._order(epoch[0])[place]
        index = np.empty(len(number), dtype=np.int64)
        for e in range(epoch[0], epoch[-1] + 1):
            index[epoch == e] = self._order(e)[place[epoch == e]]
        return index

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            # A batch meets two epochs at most, unless it is larger than the set.
            self._epochs = {e: order for e, order in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = permutation(self.seed, epoch, self.size)
        return self._epochs[epoch]


def require_even_shares(batch_size: int, world_size: int, accumulate: int) -> None:
    """Raises ValueError unless every micro-batch of every process can have the same number of images."""
    if batch_size < 1 or batch_size % (world_size * accumulate):
        raise ValueError(
            "data.batch_size is the global batch and must be divisible by processes * accumulated batches, "
            f"{world_size} * {accumulate}, got {batch_size}."
        )

"""Assignment of images to steps: step -> the part of the global batch that a rank trains on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from diffusion_lab.randomness import permutation


@dataclass(frozen=True)
class MicroBatch:
    """The images of a micro-batch.

    step: training step.  positions: positions of the B images in the global batch of the step.
    index: indices of the images in the training set, int64 [B].
    """

    step: int
    positions: range
    index: np.ndarray


class StepSampler(Sampler[MicroBatch]):
    """Infinite sequence of the micro-batches of a rank.  The global batches depend only on the seed.

    Training runs over one infinite sequence of images: entry p is image p % size of epoch p // size, and each epoch has
    its own permutation. Step n takes the entries n * batch_size ... (n + 1) * batch_size - 1 for any number of ranks:
    its global batch is split first into accumulated batches, then among the ranks.
    """

    def __init__(
        self, size: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1,
        first_step: int = 0,
    ) -> None:  # fmt: skip
        if size < 1:
            raise ValueError(f"the training set must contain at least 1 image, got {size}.")
        require_divisible_batch_size(batch_size, world_size, accumulate)
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size, self.accumulate, self.first_step = rank, world_size, accumulate, first_step
        self._epochs: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[MicroBatch]:
        size = self.batch_size // (self.world_size * self.accumulate)
        step = self.first_step
        while True:
            for micro_batch in range(self.accumulate):
                start = (micro_batch * self.world_size + self.rank) * size
                positions = range(start, start + size)
                yield MicroBatch(step, positions, self._index(step, positions))
            step += 1

    def _index(self, step: int, positions: range) -> np.ndarray:
        entries = step * self.batch_size + np.arange(positions.start, positions.stop)
        epoch, entry = np.divmod(entries, self.size)
        if epoch[0] == epoch[-1]:
            return self._permutation(epoch[0])[entry]
        index = np.empty(len(entries), dtype=np.int64)
        for e in range(epoch[0], epoch[-1] + 1):
            index[epoch == e] = self._permutation(e)[entry[epoch == e]]
        return index

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            # A batch spans at most two epochs, unless it is larger than the set.
            self._epochs = {e: cached for e, cached in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = permutation(self.seed, epoch, self.size)
        return self._epochs[epoch]


def require_divisible_batch_size(batch_size: int, world_size: int, accumulate: int) -> None:
    """Raise ValueError unless all micro-batches of all ranks can have the same number of images."""
    if batch_size < 1 or batch_size % (world_size * accumulate):
        raise ValueError(
            "data.batch_size (the global batch size) must be divisible by the world size times "
            f"trainer.accumulate_grad_batches ({world_size} * {accumulate}), got {batch_size}."
        )

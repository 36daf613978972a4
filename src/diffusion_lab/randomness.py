"""Seeds and positions -> numbers, the same on any layout of processes, batches and devices.

Every number comes from the counter-based generator Philox (Salmon et al. 2011), addressed by what it is for: directly,
or, where many normal numbers are drawn, through a Mersenne Twister whose whole state is drawn from it. Nothing here
reads or moves a global random state, and no state has to be saved to go on where a run stopped. The last bits of normal
numbers are torch's, which makes them in another way on processors without AVX2.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a stream is for: the second half of its key, so that no two uses share numbers."""

    ORDER = 0
    FLIP = 1
    TIME = 2
    NOISE = 3
    LABEL_DROPOUT = 4
    SAMPLING = 5
    SHARED_TIME = 6
    LIKELIHOOD = 7
    DROPOUT = 8
    AUGMENTATION = 9
    SAMPLED_LABEL = 10
    CONDITION_LEVEL = 11
    CONDITION_NOISE = 12
    SAMPLED_CONDITION = 13
    LATENT = 14


def stream(seed: int, purpose: Purpose, step: int = 0, position: int = 0) -> np.random.Generator:
    """The random stream of one address. Any two different addresses give independent streams."""
    # The lowest two of the four counter words belong to the stream itself: it can draw 2^128 numbers.
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, position, step]))


def positions_a_stream(size: int) -> int:
    """How many neighbouring positions of a step draw their noise, of `size` numbers each, from one stream.

    Setting up a stream costs as much as a small image's noise, and a share of one image draws all of its stream.
    """
    return min(max(2**16 // size, 1), 16)


def normal_stream(seed: int, purpose: Purpose, step: int = 0, position: int = 0) -> torch.Generator:
    """The stream of one address for normal numbers, which torch draws four times as fast as numpy; on the CPU."""
    # manual_seed would read 32 bits of the address. The state is written instead: 624 words of 32 bits, each in a field
    # of 64, after the seed and three counters that say "just seeded".
    philox = np.random.Philox(key=[seed, purpose], counter=[0, 0, position, step])
    state = _JUST_SEEDED.copy()
    state[_WORDS].view(np.int64)[:] = philox.random_raw(_NUM_WORDS // 2).view(np.uint32)
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state))
    return generator


_NUM_WORDS = 624
_WORDS = slice(24, 24 + 8 * _NUM_WORDS)
_JUST_SEEDED = torch.Generator().manual_seed(0).get_state().numpy()


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of images in one epoch: [size], int64."""
    return stream(seed, Purpose.ORDER, step=epoch).permutation(size)


class Draws:
    """All randomness of one training step, for the images at `positions` of the global batch of `batch_size`."""

    def __init__(self, seed: int, step: int, positions: Sequence[int], batch_size: int) -> None:
        self.seed, self.step, self.positions, self.batch_size = seed, step, list(positions), batch_size

    def times(self) -> Tensor:
        """One number in [0, 1) for each image, to draw its time from: [B], float64."""
        return self._uniform(Purpose.TIME)

    def shared_time(self) -> Tensor:
        """One number in [0, 1) for the whole step, the same on all processes: [], float64."""
        return torch.tensor(stream(self.seed, Purpose.SHARED_TIME, self.step).random(), dtype=torch.float64)

    def flips(self, probability: float) -> Tensor:
        """Which images to mirror: [B], bool."""
        return self._uniform(Purpose.FLIP) < probability

    def dropped_labels(self, probability: float) -> Tensor:
        """Which images to train without their label: [B], bool."""
        if not probability:
            return torch.zeros(len(self.positions), dtype=torch.bool)
        return self._uniform(Purpose.LABEL_DROPOUT) < probability

    def augmentation(self, num_uniform: int, num_normal: int) -> tuple[Tensor, Tensor]:
        """Numbers in [0, 1) and standard normal numbers for every position of the global batch, float64.

        Returns [batch_size, num_uniform] and [batch_size, num_normal].
        """
        numbers = stream(self.seed, Purpose.AUGMENTATION, self.step)
        uniform, normal = numbers.random((self.batch_size, num_uniform)), (self.batch_size, num_normal)
        return torch.from_numpy(uniform), torch.from_numpy(numbers.standard_normal(normal))

    def condition_levels(self) -> Tensor:
        """One number in [0, 1) for each image, to draw the noise of its condition from: [B], float64."""
        return self._uniform(Purpose.CONDITION_LEVEL)

    def noise(self, like: Tensor, purpose: Purpose = Purpose.NOISE, shape: Sequence[int] | None = None) -> Tensor:
        """Standard normal noise shaped as the images `like` [B, C, H, W], in float32 on their device; or of a shape."""
        shape = tuple(shape or like.shape)
        if len(self.positions) != shape[0]:
            raise ValueError(f"noise must be of one image a position, {len(self.positions)}, got {shape[0]}.")
        first, last = min(self.positions), max(self.positions)
        together = positions_a_stream(math.prod(shape[1:]))
        numbers = range(first // together, last // together + 1)
        blocks = _empty((len(numbers), together, *shape[1:]), like.device)
        for block, number in zip(blocks.unbind(), numbers, strict=True):
            block.normal_(generator=normal_stream(self.seed, purpose, self.step, number))
        noise = blocks.flatten(0, 1)[first - numbers.start * together :][: last - first + 1]
        if self.positions != list(range(first, last + 1)):
            noise = noise[[position - first for position in self.positions]]
        return noise.to(like.device, non_blocking=like.is_cuda)

    @contextmanager
    def dropout(self, device: torch.device) -> Iterator[None]:
        """Gives a network's dropout its own random numbers: of this step, and of where its batch stands in the step.

        Dropout can only draw from the global random state; that is set here, and put back at the end.
        """
        seed = int(stream(self.seed, Purpose.DROPOUT, self.step, self.positions[0]).integers(2**63))
        generators = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]
            generators.append(torch.cuda.default_generators[device.index or 0])
        states = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            if device.type in ("mps", "xpu"):
                getattr(torch, device.type).manual_seed(seed)  # not put back: nothing else here draws from it
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def _uniform(self, purpose: Purpose) -> Tensor:
        # One stream a step, number k for position k: cheaper than a stream for each, and as independent of the layout.
        numbers = stream(self.seed, purpose, self.step).random(max(self.positions) + 1)
        return torch.from_numpy(numbers[self.positions])


NUMBERS_AHEAD, DRAWS_AHEAD = 2**15, 7
"""So many numbers of an image, and so many draws, are drawn at once at most: a call costs as much as 200 numbers.

Seven, since a walk of 50 steps draws 49 times after its start.
"""


class ImageNoise:
    """Noise of images one by one: each draws from a stream of its own, whatever batch it stands in."""

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        stage: int = 0,
        purpose: Purpose = Purpose.SAMPLING,
    ) -> None:
        """All randomness of sampling images with these seeds.  shape: of one image, [C, H, W].

        stage: of a cascade, so that no two stages draw the same noise.
        """
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds must be whole numbers of at least 0, got {min(seeds)}.")
        self.shape = (len(seeds), *shape)
        self.device = torch.device(device)
        self._streams = [normal_stream(seed, purpose, step=stage) for seed in seeds]
        self._drawn: Iterator[Tensor] | None = None

    @classmethod
    def of_images(
        cls, seed: int, positions: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> "ImageNoise":
        """All randomness of a likelihood, for the images at `positions` of a set."""
        noise = cls((), shape, device)
        noise.shape = (len(positions), *shape)
        noise._streams = [normal_stream(seed, Purpose.LIKELIHOOD, position=position) for position in positions]
        return noise

    def draw(self) -> Tensor:
        """The next standard normal noise of every image: [B, C, H, W], float32."""
        if self._drawn is None:  # many need no more than one
            self._drawn = iter(())
            return self._draw(1)[0]
        if (noise := next(self._drawn, None)) is None:
            self._drawn = iter(self._draw(self._num_ahead()))
            noise = next(self._drawn)
        return noise

    def _draw(self, num_draws: int) -> tuple[Tensor, ...]:
        drawn = _empty((self.shape[0], num_draws, *self.shape[1:]), self.device)
        for row, image_stream in zip(drawn.unbind(), self._streams, strict=True):
            row.normal_(generator=image_stream)
        return drawn.to(self.device, non_blocking=self.device.type == "cuda").unbind(1)

    def _num_ahead(self) -> int:
        size = math.prod(self.shape[1:])
        # torch makes normal numbers sixteen at a time: only draws of whole sixteens are the same at once and in turn.
        return 1 if size % 16 else min(max(NUMBERS_AHEAD // size, 1), DRAWS_AHEAD)


def _empty(shape: Sequence[int], device: torch.device) -> Tensor:
    """Memory of the CPU that a copy to `device` need not wait for, float32."""
    return torch.empty(tuple(shape), dtype=torch.float32, pin_memory=device.type == "cuda")

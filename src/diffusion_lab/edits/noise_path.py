"""Interpolation between noise tensors, and walks that return to their start."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusion_lab.edits.frame_sequence import FrameSequence, is_whole


class NoisePath(FrameSequence):
    """Great-circle arcs between noise tensors, so that the noise of each frame is standard normal.

    Subclasses are frozen dataclasses with the fields
    num_frames: see `FrameSequence`.
    seeds: numbers of the images of a set of samples whose noise tensors are the stops, in their order, unless source
        images are given, whose inverted noise tensors are then the stops.
    Raises ValueError unless there are at least two seeds, and neighbors differ.
    """

    takes_images: ClassVar[bool] = True

    seeds: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.seeds
        seeds = list(given) if isinstance(given, list | tuple) else []
        if len(seeds) < 2 or not all(is_whole(seed, 0) for seed in seeds):
            raise ValueError(f"seeds must be a list of at least two whole numbers of at least 0, got {given}.")
        following = [*seeds[1:], seeds[0]] if self.is_closed else seeds[1:]
        if equal := [seed for seed, other in zip(seeds, following, strict=False) if seed == other]:
            raise ValueError(f"seeds must differ from the next seed, got {equal[0]} twice in a row in {seeds}.")
        object.__setattr__(self, "seeds", tuple(seeds))

    def num_stops(self, num_classes: int) -> int:
        return len(self.seeds)

    def noise_number(self, stop: int) -> int:
        return self.seeds[stop]


@dataclass(frozen=True)
class Interpolate(NoisePath):
    """Frames from the first stop to the last.  num_frames, seeds: see `NoisePath`.

    >>> from diffusion_lab.edits import Interpolate
    >>> Interpolate(num_frames=5, seeds=[0, 57]).place(1, num_stops=2)
    Place(first=0, second=1, fraction=0.25)
    """

    name: ClassVar[str] = "interpolate"

    num_frames: int = 24
    seeds: Sequence[int] = (0, 1)


@dataclass(frozen=True)
class Walk(NoisePath):
    """Frames that return to the first stop, so that an animation repeats without a jump.

    num_frames, seeds: see `NoisePath`.

    >>> from diffusion_lab.edits import Walk
    >>> walk = Walk(num_frames=6, seeds=[3, 8])
    >>> walk.place(5, num_stops=2)
    Place(first=1, second=0, fraction=0.6666666666666666)
    >>> walk.place(6, num_stops=2) == walk.place(0, num_stops=2)
    True
    """

    name: ClassVar[str] = "walk"
    is_closed: ClassVar[bool] = True

    num_frames: int = 64
    seeds: Sequence[int] = tuple(range(8))

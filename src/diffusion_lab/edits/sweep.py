"""Sweeps: the same noise with different guidance scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffusion_lab.edits.frame_sequence import FrameSequence, Place


@dataclass(frozen=True)
class Sweep(FrameSequence):
    """Frames with increasing or decreasing guidance and the same noise.

    num_frames: see `FrameSequence`.
    guidance_scales: guidance scales of the stops.
    Raises ValueError unless there are at least two finite scales of at least 0.

    >>> from diffusion_lab.edits import Sweep
    >>> sweep = Sweep(num_frames=5, guidance_scales=[1, 3])
    >>> [sweep.guidance_scale(sweep.place(frame, num_stops=2)) for frame in range(5)]
    [1.0, 1.5, 2.0, 2.5, 3.0]
    """

    name: ClassVar[str] = "sweep"

    num_frames: int = 24
    guidance_scales: Sequence[float] = (1.0, 8.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.guidance_scales
        scales = list(given) if isinstance(given, list | tuple) else []
        if len(scales) < 2 or not all(_is_scale(scale) for scale in scales):
            raise ValueError(
                f"guidance_scales must be a list of at least two finite numbers of at least 0, got {given}."
            )
        object.__setattr__(self, "guidance_scales", tuple(map(float, scales)))

    def num_stops(self, num_classes: int) -> int:
        return len(self.guidance_scales)

    def guidance_scale(self, place: Place) -> float:
        first, second = self.guidance_scales[place.first], self.guidance_scales[place.second]
        return (1 - place.fraction) * first + place.fraction * second


def _is_scale(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf

"""Sequences of frames: images along a path through noise tensors, classes or guidance scales."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from diffusion_lab.contracts import DataclassInterface


@dataclass(frozen=True)
class Place:
    """Place of a frame on a path.

    first, second: numbers of two neighboring stops of the path; equal at the end of an open path.
    fraction: fraction of the way from the first to the second, in [0, 1).

    >>> from diffusion_lab.edits import Interpolate
    >>> Interpolate(num_frames=3).place(2, num_stops=2)  # the last frame
    Place(first=1, second=1, fraction=0.0)
    """

    first: int
    second: int
    fraction: float


class FrameSequence(DataclassInterface):
    """A path through stops, along which frames are evenly distributed. No source images are required.

    A stop has a noise tensor, a class and a guidance scale. The quantity that changes along the path is a continuous
    function of the place, and so are the frames.

    Each sequence is a frozen dataclass with the field
    num_frames: number of frames. An open path has its first and its last frame at its ends; on a closed path, the frame
        after the last is the first.
    name: name of the sequence in messages, which is its choice of the setting `task`.
    is_closed: whether the path returns to its first stop.
    takes_images: whether source images can be the stops.
    """

    name: ClassVar[str]
    is_closed: ClassVar[bool] = False
    takes_images: ClassVar[bool] = False

    num_frames: int

    def __post_init__(self) -> None:
        if not is_whole(self.num_frames, 2):
            raise ValueError(f"num_frames must be a whole number of at least 2, got {self.num_frames}.")

    @abstractmethod
    def num_stops(self, num_classes: int) -> int:
        """Return the number of stops.  num_classes: number of classes that the setting `label` gives."""

    def noise_number(self, stop: int) -> int:
        """Return the number that is added to the seed of the sequence for the noise of a stop."""
        return 0

    def label_seed(self, stop: int, seed: int) -> int:
        """Return the seed of the sample whose class is the class of a stop.  seed: seed of the sequence."""
        return seed + self.noise_number(stop)

    def guidance_scale(self, place: Place) -> float | None:
        """Return the guidance scale of a frame; None for the scale with which all frames are generated."""
        return None

    def place(self, frame: int, num_stops: int) -> Place:
        """Return the place of a frame.  Whole numbers are divided exactly, so that a closed path ends at its start."""
        num_arcs, num_steps = (num_stops, self.num_frames) if self.is_closed else (num_stops - 1, self.num_frames - 1)
        first, rest = divmod(frame * num_arcs, num_steps)
        last = num_stops - 1
        if self.is_closed:
            return Place(first % num_stops, (first + 1) % num_stops, rest / num_steps)
        return Place(min(first, last), min(first + 1, last), rest / num_steps)


def is_whole(value: object, least: int) -> bool:
    """Return whether a setting is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

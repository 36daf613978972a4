"""Morphs: the same noise with mixtures of classes."""

from dataclasses import dataclass
from typing import ClassVar

from diffusion_lab.edits.frame_sequence import FrameSequence


@dataclass(frozen=True)
class Morph(FrameSequence):
    """Frames from class to class with the same noise: the embeddings of neighboring classes are mixed.

    num_frames: see `FrameSequence`.

    >>> from diffusion_lab.edits import Morph
    >>> Morph(num_frames=9).place(2, num_stops=3)  # three classes
    Place(first=0, second=1, fraction=0.5)
    """

    name: ClassVar[str] = "morph"

    num_frames: int = 24

    def num_stops(self, num_classes: int) -> int:
        return num_classes

    def label_seed(self, stop: int, seed: int) -> int:
        return stop

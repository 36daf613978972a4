"""Masks: rules that choose the pixels of a source image that are filled."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.contracts import DataclassInterface
from diffusion_lab.edits.sources import Sources
from diffusion_lab.errors import UserError
from diffusion_lab.randomness import Purpose, stream

WHITE = 128
"""Smallest gray level of a mask that counts as white: at least half of the pixel is white."""

MASK_STEP = 1
"""Step of the random streams of masks, whose purpose they share with the random operators."""


class Mask(DataclassInterface):
    """A rule that chooses the pixels of each source image that are filled.

    Each mask is a frozen dataclass.
    of_each_source: whether the hole depends on the pixels of the source.
    hides_source: whether the colors of the source in the hole are unknown.
    """

    of_each_source: ClassVar[bool] = False
    hides_source: ClassVar[bool] = False

    @abstractmethod
    def hole(self, sources: Sources) -> Tensor:
        """Return whether each pixel is filled, bool [B, 1, H, W]."""


@dataclass(frozen=True)
class MaskFile(Mask):
    """The white pixels of an image file.  path: path of the file."""

    path: str

    def hole(self, sources: Sources) -> Tensor:
        assert sources.mask is not None, "the mask file is read with the sources"
        return sources.mask >= WHITE


@dataclass(frozen=True)
class TransparentPixels(Mask):
    """The transparent pixels of the source image file."""

    of_each_source: ClassVar[bool] = True
    hides_source: ClassVar[bool] = True

    def hole(self, sources: Sources) -> Tensor:
        if sources.mask is None:
            raise UserError(
                "`mask` must be given for task=inpaint if the source images have no transparent pixels, such as "
                "mask=half or mask=file mask.path=FILE, got none."
            )
        return sources.mask >= WHITE


@dataclass(frozen=True)
class Rectangle(Mask):
    """A rectangle, the same for all images.

    box: top, left, height and width, as whole numbers of pixels, or as fractions of the height and the width of the
        image in [0, 1].
    Raises ValueError for other numbers, and for a rectangle without area.
    """

    box: Sequence[float]

    def __post_init__(self) -> None:
        box = list(self.box)
        object.__setattr__(self, "box", tuple(box))
        is_pixels = all(type(k) is int and k >= 0 for k in box)
        if len(box) != 4 or not (is_pixels or all(type(k) is float and 0 <= k <= 1 for k in box)) or not min(box[2:]):
            raise ValueError(
                "box must be [top, left, height, width] in whole numbers of pixels, or in decimal numbers from 0.0 to "
                f"1.0 (fractions of the image), with a height and a width above 0, got {box}."
            )

    def hole(self, sources: Sources) -> Tensor:
        _, height, width = sources.image_shape
        sides = (height, width, height, width)
        box = [k if isinstance(k, int) else round(k * side) for k, side in zip(self.box, sides, strict=True)]
        top, left, rows, columns = box
        if top + rows > height or left + columns > width:
            raise UserError(
                f"mask.box must be a rectangle inside the images ({height} x {width} pixels), got {list(self.box)}."
            )
        return _for_all(sources, _rectangle(height, width, top, left, rows, columns))


@dataclass(frozen=True)
class RandomRectangle(Mask):
    """A rectangle with random sides at a random place, for each source its own.

    min_side, max_side: smallest and largest side of the rectangle, as fractions of the height and width of the image.
    Raises ValueError unless 0 < min_side <= max_side < 1.
    """

    min_side: float = 0.25
    max_side: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.min_side <= self.max_side < 1:
            raise ValueError(
                "min_side and max_side must be in (0, 1) with min_side at most max_side, got "
                f"{self.min_side} and {self.max_side}."
            )

    def hole(self, sources: Sources) -> Tensor:
        _, height, width = sources.image_shape
        return _for_each(sources, lambda generator: self._hole(height, width, generator))

    def _hole(self, height: int, width: int, generator: np.random.Generator) -> Tensor:
        rows, columns = (
            min(max(round(side * generator.uniform(self.min_side, self.max_side)), 1), side - 1)
            for side in (height, width)
        )
        top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
        return _rectangle(height, width, top, left, rows, columns)


@dataclass(frozen=True)
class RandomPixels(Mask):
    """Random pixels, for each source its own.

    fraction: fraction of the pixels that are filled.  Raises ValueError unless it is in (0, 1).
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must be in (0, 1), got {self.fraction}.")

    def hole(self, sources: Sources) -> Tensor:
        _, height, width = sources.image_shape
        size = height * width
        count = min(max(round(self.fraction * size), 1), size - 1)
        return _for_each(
            sources, lambda generator: torch.from_numpy(generator.permutation(size) < count).view(height, width)
        )


@dataclass(frozen=True)
class Half(Mask):
    """Half of the image.

    side: "left", "right", "top" or "bottom" half, or "middle" for the columns from a quarter to three quarters of the
        width.
    """

    side: Literal["left", "right", "top", "bottom", "middle"] = "middle"

    def __post_init__(self) -> None:
        if self.side not in _HALVES:
            raise ValueError(f"side must be {', '.join(list(_HALVES)[:-1])} or middle, got {self.side}.")

    def hole(self, sources: Sources) -> Tensor:
        _, height, width = sources.image_shape
        top, left, rows, columns = _HALVES[self.side]
        box = (round(top * height), round(left * width), round(rows * height), round(columns * width))
        return _for_all(sources, _rectangle(height, width, *box))


_HALVES = {
    "left": (0.0, 0.0, 1.0, 0.5),
    "right": (0.0, 0.5, 1.0, 0.5),
    "top": (0.0, 0.0, 0.5, 1.0),
    "bottom": (0.5, 0.0, 0.5, 1.0),
    "middle": (0.0, 0.25, 1.0, 0.5),
}
"""Top, left, height and width of each half, as fractions of the image."""


@dataclass(frozen=True)
class Outside(Mask):
    """All pixels except a rectangle in the center, for outpainting.

    keep: height and width of the rectangle, as fractions of those of the image.  Raises ValueError unless it is in
        (0, 1).
    """

    keep: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must be in (0, 1), got {self.keep}.")

    def hole(self, sources: Sources) -> Tensor:
        _, height, width = sources.image_shape
        rows, columns = max(round(self.keep * height), 1), max(round(self.keep * width), 1)
        return _for_all(
            sources, ~_rectangle(height, width, (height - rows) // 2, (width - columns) // 2, rows, columns)
        )


@dataclass(frozen=True)
class Color(Mask):
    """The pixels of a color.

    color: gray level, or the levels of red, green and blue, from 0 to 255.
    tolerance: largest difference of a level from that of the color.
    Raises ValueError for other numbers.
    """

    of_each_source: ClassVar[bool] = True

    color: Sequence[int] | int
    tolerance: int = 16

    def __post_init__(self) -> None:
        levels = [self.color] if isinstance(self.color, int) else list(self.color)
        if len(levels) not in (1, 3) or any(type(level) is not int or not 0 <= level <= 255 for level in levels):
            raise ValueError(f"color must be a gray level or [red, green, blue], each from 0 to 255, got {self.color}.")
        if type(self.tolerance) is not int or not 0 <= self.tolerance <= 255:
            raise ValueError(f"tolerance must be a whole number from 0 to 255, got {self.tolerance}.")
        object.__setattr__(self, "color", tuple(levels))

    def hole(self, sources: Sources) -> Tensor:
        assert not isinstance(self.color, int)
        channels = sources.image_shape[0]
        if len(self.color) > channels:
            raise UserError(f"mask.color must be one gray level for images with 1 channel, got {list(self.color)}.")
        levels = torch.tensor(self.color, dtype=sources.images.dtype, device=sources.images.device).view(1, -1, 1, 1)
        difference = ((sources.images + 1) * 127.5 - levels).abs()
        return (difference <= self.tolerance + 1e-3).all(dim=1, keepdim=True)  # 1e-3: rounding of float32


def require_partial(hole: Tensor, sources: Sources) -> None:
    """Raise UserError unless the hole [B, 1, H, W] of each source has pixels that are filled and others that are known.

    sources: sources of the holes.
    """
    fractions = hole.flatten(1).double().mean(dim=1).tolist()
    for number, fraction in zip(sources.numbers, fractions, strict=True):
        if fraction in (0.0, 1.0):
            found = "no pixel" if fraction == 0 else "all pixels"
            raise UserError(
                f"`mask` must fill a part of each image, got a mask that fills {found} of source image {number}; the "
                "white pixels of a mask file are filled, or without white its transparent pixels."
            )


def _rectangle(height: int, width: int, top: int, left: int, rows: int, columns: int) -> Tensor:
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[top : top + rows, left : left + columns] = True
    return hole


def _for_all(sources: Sources, hole: Tensor) -> Tensor:
    """Return a hole [H, W] for each source, bool [B, 1, H, W]."""
    return hole.to(sources.images.device).expand(len(sources.numbers), 1, *hole.shape)


def _for_each(sources: Sources, draw: Callable[[np.random.Generator], Tensor]) -> Tensor:
    """Return a random hole for each source, bool [B, 1, H, W], with the random stream of the source."""
    streams = (stream(number, Purpose.OPERATOR, step=MASK_STEP) for number in sources.numbers)
    return torch.stack([draw(generator) for generator in streams])[:, None].to(sources.images.device)

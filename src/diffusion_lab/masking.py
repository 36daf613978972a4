"""Inpainting: the image with a hole, and its mask, that a network is conditioned on.

A mask is 1 where a pixel is known and 0 in the hole, as in partial convolutions (Liu et al. 2018) and RePaint (Lugmayr
et al. 2022). The condition image of a network is the image, whose hole is filled with 0 (gray), and the mask as
one more channel: [B, C + 1, H, W]. A network for latents receives the latents of this image, and the mask at their
resolution (`encode_masked`).
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.contracts import DataclassInterface
from diffusion_lab.networks import Condition
from diffusion_lab.randomness import Draws


def masked_condition(label: Tensor | None, images: Tensor, mask: Tensor) -> Condition:
    """Return the condition of an inpainting network: the images without the pixels of their holes, and the masks.

    label: classes, int64 [B], or None.  images: [B, C, H, W] in [-1, 1].
    mask: [B, 1, H, W], 1 (or True) for a known pixel and 0 for a pixel of the hole.
    Raises ValueError for a mask of another shape or with other values.

    >>> from diffusion_lab import masked_condition
    >>> condition = masked_condition(None, torch.full((1, 1, 1, 3), 0.5), torch.tensor([[[[1, 1, 0]]]]))
    >>> condition.image
    tensor([[[[0.5000, 0.5000, 0.0000]],
    <BLANKLINE>
             [[1.0000, 1.0000, 0.0000]]]])
    """
    expected = (len(images), 1, *images.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"`mask` must be {list(expected)} for images {list(images.shape)}, got {list(mask.shape)}.")
    is_known = mask == 1
    if mask.dtype != torch.bool and not bool((is_known | (mask == 0)).all()):
        raise ValueError("`mask` must be 1 for known pixels and 0 in the hole, got other values.")
    is_known = is_known.to(images.device, non_blocking=images.is_cuda)
    return Condition(label, image=torch.cat([images.masked_fill(~is_known, 0), is_known.to(images.dtype)], dim=1))


def encode_masked(image: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode the condition image of an inpainting network for latents, as in Rombach et al. (2022), section 4.5.

    A latent pixel counts as known only if all pixels of its block are known. The code of the paper and Stable Diffusion
    take one pixel of each block instead (nearest neighbor), so that their masks miss holes between these pixels.

    image: images with a hole and their masks, [B, C + 1, H, W], see `masked_condition`.
    encode: map from images to latents, [B, C, H, W] -> [B, L, h, w], where h and w divide H and W.
    Returns the latents of the images and the masks: [B, L + 1, h, w].

    >>> from diffusion_lab.masking import encode_masked
    >>> image = torch.tensor([[[[0.5, 0.5, 0.5, 0.0]], [[1.0, 1.0, 1.0, 0.0]]]])  # the last of four pixels is unknown
    >>> encode_masked(image, lambda images: images[:, :, :, ::2])[:, 1]
    tensor([[[1., 0.]]])
    """
    latents, mask = encode(image[:, :-1]), image[:, -1:]
    block = image.shape[2] // latents.shape[2], image.shape[3] // latents.shape[3]
    return torch.cat([latents, 1 - F.max_pool2d(1 - mask, block)], dim=1)


class Masking(DataclassInterface):
    """Distribution of random holes for the training of an inpainting network."""

    @property
    @abstractmethod
    def num_uniform(self) -> int:
        """Number of uniform random numbers that determine the mask of an image."""

    @abstractmethod
    def mask(self, uniform: Tensor, like: Tensor) -> Tensor:
        """Return the masks of images: bool [B, 1, H, W] on the device of `like`, true for known pixels.

        uniform: random numbers in [0, 1), float64 [B, num_uniform].  like: images, [B, C, H, W].
        """

    def condition_channels(self, channels: int) -> int:
        """Return the number of channels of the condition image.  channels: number of channels of an image."""
        return channels + 1

    def training_condition(self, x_0: Tensor, draws: Draws) -> Condition:
        """Return the condition, without labels, for the images x_0 [B, C, H, W] of a training step."""
        return masked_condition(None, x_0, self.mask(draws.masks(self.num_uniform), x_0))


@dataclass(frozen=True)
class RandomRectangles(Masking):
    """A hole that consists of rectangles. Their number is uniform in 1 to max_rectangles.

    min_side, max_side: range of the width and of the height of a rectangle, as fractions of those of the image. Both
        are uniform in this range, and so is the position of the rectangle inside the image.
    """

    max_rectangles: int = 3
    min_side: float = 0.2
    max_side: float = 0.6

    def __post_init__(self) -> None:
        _require_count("max_rectangles", self.max_rectangles)
        _require_range("side", self.min_side, self.max_side)

    @property
    def num_uniform(self) -> int:
        return 1 + 4 * self.max_rectangles

    def mask(self, uniform: Tensor, like: Tensor) -> Tensor:
        is_used = _is_used(uniform[:, 0], self.max_rectangles)  # [B, max_rectangles]
        u, v, x, y = uniform[:, 1:].reshape(len(uniform), 4, self.max_rectangles).unbind(1)
        columns = self._inside(u, x, like.shape[3], like.device)  # [B, max_rectangles, W]
        rows = self._inside(v, y, like.shape[2], like.device)  # [B, max_rectangles, H]
        rows &= is_used[:, :, None].to(rows.device, non_blocking=rows.is_cuda)
        return ~(rows[:, :, :, None] & columns[:, :, None, :]).any(dim=1, keepdim=True)

    def _inside(self, size: Tensor, position: Tensor, side: int, device: torch.device) -> Tensor:
        """Return which of the `side` pixels along one axis are inside of each rectangle.  size, position: uniform."""
        least, most = (max(1, round(fraction * side)) for fraction in (self.min_side, self.max_side))
        length = least + (size * (most - least + 1)).floor()
        first = (position * (side - length + 1)).floor()
        bounds = torch.stack([first, first + length]).to(device, torch.float32, non_blocking=device.type == "cuda")
        pixels = torch.arange(side, dtype=torch.float32, device=device)
        return (pixels >= bounds[0, :, :, None]) & (pixels < bounds[1, :, :, None])


@dataclass(frozen=True)
class Strokes(Masking):
    """A hole that consists of brush strokes, as in the free-form masks of Yu et al. (2019).

    max_strokes: the number of strokes is uniform in 1 to max_strokes.
    num_segments: number of straight segments of a stroke. A stroke starts at a uniform point of the image, and each
        segment moves it by a uniform step in x and in y; a point beyond the border moves to the border.
    max_step: largest step in x and in y, as a fraction of the width and of the height of the image.
    min_width, max_width: range of the width of a stroke, which is uniform in it, as fractions of the shorter side.
    """

    max_strokes: int = 4
    num_segments: int = 4
    max_step: float = 0.3
    min_width: float = 0.1
    max_width: float = 0.25

    def __post_init__(self) -> None:
        _require_count("max_strokes", self.max_strokes)
        _require_count("num_segments", self.num_segments)
        if not 0 < self.max_step <= 1:
            raise ValueError(f"max_step must be in (0, 1], got {self.max_step}.")
        _require_range("width", self.min_width, self.max_width)

    @property
    def num_uniform(self) -> int:
        return 1 + self.max_strokes * (3 + 2 * self.num_segments)

    def mask(self, uniform: Tensor, like: Tensor) -> Tensor:
        height, width = like.shape[2:]
        of_stroke = uniform[:, 1:].reshape(len(uniform), self.max_strokes, -1)
        radius = (self.min_width + (self.max_width - self.min_width) * of_stroke[:, :, 0]) * min(height, width) / 2
        radius = radius.masked_fill(~_is_used(uniform[:, 0], self.max_strokes), -1)  # no pixel is nearer than -1
        points = self._points(of_stroke[:, :, 1:]) * torch.tensor([width, height])
        radius, points = (part.to(like.device, torch.float32, non_blocking=like.is_cuda) for part in (radius, points))
        is_hole = torch.zeros(len(uniform), height, width, dtype=torch.bool, device=like.device)
        for stroke in range(self.max_strokes):
            for start, end in zip(points[:, stroke].unbind(1)[:-1], points[:, stroke].unbind(1)[1:], strict=True):
                is_hole |= _is_near(start, end, radius[:, stroke], height, width)
        return ~is_hole[:, None]

    def _points(self, uniform: Tensor) -> Tensor:
        """Return the points of each stroke, as fractions of the sides: [B, max_strokes, num_segments + 1, 2], (x, y).

        uniform: [B, max_strokes, 2 (num_segments + 1)].
        """
        start, *steps = uniform.reshape(*uniform.shape[:2], -1, 2).unbind(2)
        points = [start]
        for step in steps:
            points.append((points[-1] + self.max_step * (2 * step - 1)).clamp(0, 1))
        return torch.stack(points, dim=2)


@dataclass(frozen=True)
class Halves(Masking):
    """A hole that is the left, right, upper or lower half of the image, each with probability 1/4.

    The middle row or column of an image with an odd side is known.
    """

    @property
    def num_uniform(self) -> int:
        return 1

    def mask(self, uniform: Tensor, like: Tensor) -> Tensor:
        height, width = like.shape[2:]
        x, y = (torch.arange(side, device=like.device) for side in (width, height))
        is_left, is_upper = (x < width // 2).expand(height, width), (y < height // 2)[:, None].expand(height, width)
        holes = torch.stack([is_left, is_left.flip(1), is_upper, is_upper.flip(0)])  # [4, H, W]
        kind = (4 * uniform[:, 0]).long().to(like.device, non_blocking=like.is_cuda)
        return ~holes[kind][:, None]


def _is_used(uniform: Tensor, most: int) -> Tensor:
    """Return which of `most` shapes belong to a hole, whose number of shapes is uniform in 1 to `most`: [B, most]."""
    return torch.arange(most) <= (most * uniform).floor()[:, None]


def _is_near(start: Tensor, end: Tensor, radius: Tensor, height: int, width: int) -> Tensor:
    """Return the pixels whose center has at most the distance `radius` from a line segment: bool [B, H, W].

    start, end: points (x, y) in pixels, [B, 2].  radius: [B]; no pixel is near a segment with a negative radius.
    """
    # One elementwise operation at a time, so that the result is the same on all devices and for all batch sizes.
    x = torch.arange(width, dtype=torch.float32, device=start.device)[None, None, :] + 0.5 - start[:, 0, None, None]
    y = torch.arange(height, dtype=torch.float32, device=start.device)[None, :, None] + 0.5 - start[:, 1, None, None]
    along_x, along_y = (end - start)[:, :, None, None].unbind(1)
    squared_length = (along_x * along_x + along_y * along_y).clamp_min(1e-12)
    fraction = ((x * along_x + y * along_y) / squared_length).clamp(0, 1)  # of the nearest point on the segment
    x, y = x - fraction * along_x, y - fraction * along_y
    squared_radius = (radius * radius.abs())[:, None, None]
    return x * x + y * y <= squared_radius


def _require_count(name: str, value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value}.")


def _require_range(name: str, least: float, most: float) -> None:
    if not 0 < least <= most <= 1:
        raise ValueError(
            f"min_{name} and max_{name} must satisfy 0 < min_{name} <= max_{name} <= 1, got {least} and {most}."
        )

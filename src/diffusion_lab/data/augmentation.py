"""Augmentation whose distortions the network is told, so that it need not draw them (Karras et al. 2022, section 5)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.randomness import Draws

LOG_SCALE_STD = 0.2
"""Of the powers of two that zoom and stretch (Karras et al. 2022, table 6), as the next is."""
TRANSLATION_STD = 1 / 8
"""Of the shift, in sides of the image."""

# The low-pass filter of Daubechies' least asymmetric wavelet with six vanishing moments (Daubechies 1992, table 6.3).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_HALF = len(SYM6) // 2
# Where pixel j stands on the grid of twice the pixels: at 2j + _CENTRE. The filter is not symmetric: with its middle
# instead of the centre of its mass, half a turn would also shift the image by 0.4 pixels.
_CENTRE = sum(k * tap for k, tap in enumerate(SYM6)) / math.sqrt(2) - (_HALF - 1)


class Augmentation(ABC):
    """Distorts images and says how.  num_channels: length of what it says of an image."""

    num_channels: int

    @abstractmethod
    def __call__(self, x_0: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """x_0: float [B, C, H, W].  Returns the images and float32 [B, num_channels], 0 for an image left as it was."""


@dataclass(frozen=True)
class EDMAugmentation(Augmentation):
    """Mirroring, zoom, rotation, stretching along a direction and shift (Karras et al. 2022, appendix F.2, table 6).

    probability: of each transformation but the left-right mirroring, which half of the images get whatever it is.
    The network is told 9 numbers an image. Augmented images exceed [-1, 1] a little where the filter overshoots.
    """

    probability: float = 0.12

    num_channels = 9

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {self.probability}.")

    def __call__(self, x_0: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        distortions = Distortions.drawn(draws, self.probability)
        return distortions(x_0), distortions.label.float().to(x_0.device, non_blocking=x_0.is_cuda)


@dataclass(frozen=True)
class Distortions:
    """What happens to each image, in this order; 0 is nothing.  All float64 [B] on the CPU.

    flip_x, flip_y: 1 mirrors left and right, top and bottom.  zoom: enlarges by 2^(0.2 zoom).
    angle: turns counter-clockwise, in radians.
    stretch, direction: enlarges by 2^(0.2 stretch) along the direction, in radians clockwise from the right, and
        shrinks as much across it; half of the directions are 0.
    right, down: shifts, in eighths of the side.
    """

    flip_x: Tensor
    flip_y: Tensor
    zoom: Tensor
    angle: Tensor
    stretch: Tensor
    direction: Tensor
    right: Tensor
    down: Tensor

    @classmethod
    def drawn(cls, draws: Draws, probability: float) -> "Distortions":
        """Those of a step's images (Karras et al. 2022, table 6)."""
        # Worked out for the whole global batch: vectorised functions may round otherwise in a batch of another length.
        uniform, normal = draws.augmentation(num_uniform=10, num_normal=4)
        flip_y, zoomed, turned, stretched, shifted = (uniform[:, :5] < probability).double().unbind(1)
        coins = (uniform[:, 5:7] < 0.5).double()
        angles = math.pi * (2 * uniform[:, 7:9] - 1)
        oblique = (uniform[:, 9] < 0.5).double()  # the others along the sides, as in the paper's code
        whole = (
            coins[:, 0],
            flip_y * coins[:, 1],
            zoomed * normal[:, 0],
            turned * angles[:, 0],
            stretched * normal[:, 1],
            stretched * oblique * angles[:, 1],
            shifted * normal[:, 2],
            shifted * normal[:, 3],
        )
        return cls(*(numbers[draws.positions] for numbers in whole))

    @property
    def label(self) -> Tensor:
        """What the network is told (Karras et al. 2022, table 6): [B, 9], float64."""
        return torch.stack(
            [
                self.flip_x,
                self.flip_y,
                self.zoom,
                self.angle.cos() - 1,
                self.angle.sin(),
                self.stretch * self.direction.cos(),
                self.stretch * self.direction.sin(),
                self.right,
                self.down,
            ],
            dim=1,
        )

    def inverse(self, height: int, width: int) -> Tensor:
        """From a place in the distorted image to its place in the mirrored one: [B, 2, 3] on (x, y, 1), float64.

        x to the right and y down, in pixels from the middle of the image.
        """
        shrink = torch.exp2(-LOG_SCALE_STD * self.stretch)
        along = _rotations(self.direction)
        unstretch = along @ torch.diag_embed(torch.stack([shrink, 1 / shrink], dim=1)) @ along.mT
        unzoom = torch.exp2(-LOG_SCALE_STD * self.zoom)[:, None, None]
        linear = unzoom * _rotations(self.angle) @ unstretch  # y points down: a rotation by +angle undoes the turn
        shift = TRANSLATION_STD * torch.stack([self.right * width, self.down * height], dim=1)[:, :, None]
        return torch.cat([linear, -linear @ shift], dim=2)

    def __call__(self, x: Tensor) -> Tensor:
        """The distorted images [B, C, H, W]; those that are only mirrored keep every bit."""
        for flips, dim in ((self.flip_x, -1), (self.flip_y, -2)):
            x = torch.where(flips.bool().to(x.device, non_blocking=x.is_cuda)[:, None, None, None], x.flip(dim), x)
        shifted = torch.stack([self.zoom, self.angle, self.stretch, self.right, self.down]).any(0).nonzero().squeeze(1)
        if not len(shifted):
            return x
        rows = shifted.to(x.device, non_blocking=x.is_cuda)
        return x.index_copy(0, rows, warp(x[rows], self.inverse(*x.shape[-2:])[shifted]))


def warp(x: Tensor, inverse: Tensor) -> Tensor:
    """Images [B, C, H, W] moved without aliasing, by way of twice the pixels (Karras et al. 2020, appendix B).

    inverse: as `Distortions.inverse`.  Outside its frame an image goes on as its mirror image, without end.
    Every image comes out the same in any batch: nothing is multiplied or convolved across images.
    """
    height, width = x.shape[-2:]
    fine = _upsampled(_upsampled(x).mT).mT
    return _downsampled(_downsampled(_resampled(fine, inverse.to(x, non_blocking=x.is_cuda), height, width)).mT).mT


def _rotations(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2)


def _upsampled(x: Tensor) -> Tensor:
    """One period of the endlessly mirrored row, with twice the pixels: [..., W] -> [..., 4 (W - 1) + 2]."""
    width = x.shape[-1]
    period = max(2 * (width - 1), 1)
    index = torch.arange(-(_HALF // 2), period + _HALF // 2 + 1, device=x.device) % period
    x = x[..., torch.minimum(index, period - index)]
    # Pixel m of the fine row is the sum over j of tap[m - 2j + 5] x[j]: the odd taps for even m, the even ones for odd.
    even = _filtered(x, SYM6[::-2], start=0, step=1, count=period + 1)
    odd = _filtered(x, SYM6[-2::-2], start=1, step=1, count=period + 1)
    return torch.stack([even, odd], dim=-1).flatten(-2)


def _downsampled(fine: Tensor) -> Tensor:
    """The adjoint of the upsampling, and so its inverse: [..., 2 W + 10] -> [..., W]."""
    return _filtered(fine, SYM6, start=0, step=2, count=(fine.shape[-1] - 2 * (_HALF - 1)) // 2)


def _filtered(x: Tensor, taps: tuple[float, ...], *, start: int, step: int, count: int) -> Tensor:
    # Products and sums of whole tensors: a convolution's rounding may depend on how many images share the batch.
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for k, tap in enumerate(taps, start):
        total = total + tap * x[..., k : k + step * (count - 1) + 1 : step]
    return total


def _resampled(fine: Tensor, inverse: Tensor, height: int, width: int) -> Tensor:
    """Fine images where `inverse` says, with the margin that downsampling needs: [B, C, 2 H + 10, 2 W + 10]."""
    x, y = _places(width, inverse), _places(height, inverse)[:, None]
    grid = []
    for axis, side in enumerate((width, height)):
        across, down, shift = inverse[:, axis, :, None, None].unbind(1)
        place = across * x + down * y + shift  # [B, 2 H + 10, 2 W + 10], pixels from the middle
        size = fine.shape[-1 - axis]
        index = (2 * place + (side - 1 + _CENTRE)).remainder(size - 2)  # the last two repeat the first two
        grid.append((2 * index + 1) / size - 1)
    return F.grid_sample(fine, torch.stack(grid, dim=-1), mode="bilinear", padding_mode="border", align_corners=False)


def _places(side: int, like: Tensor) -> Tensor:
    """Fine pixels from the middle of an image, margin included, in its own pixels: [2 * side + 10]."""
    index = torch.arange(1 - _HALF, 2 * side + _HALF - 1, dtype=like.dtype, device=like.device)
    return (index - _CENTRE) / 2 - (side - 1) / 2

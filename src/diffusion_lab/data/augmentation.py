"""Data augmentation whose parameters are an input of the network, so that generated images are not augmented.

Source: Karras et al. 2022, section 5.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.contracts import Interface, added
from diffusion_lab.randomness import Draws

LOG_SCALE_STD = 0.2
"""Standard deviation of the log2 of isotropic and of anisotropic scale factors (Karras et al. 2022, table 6)."""
TRANSLATION_STD = 1 / 8
"""Standard deviation of translations, as a fraction of the image side (Karras et al. 2022, table 6)."""

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
# Pixel j of an image is at position 2j + _CENTER on the grid that is upsampled by 2. The filter is not symmetric, so
# _CENTER is the filter's center of mass instead of its middle: with the middle, a rotation by 180 degrees would shift
# the image by 0.4 pixels.
_CENTER = sum(k * tap for k, tap in enumerate(SYM6)) / math.sqrt(2) - (_HALF - 1)


class Augmentation(Interface):
    """Random transformation of images that also returns its parameters, on which the network is conditioned.

    num_channels: number of values in the augmentation label of an image.
    """

    num_channels: int

    @abstractmethod
    def __call__(self, x_0: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Transform the images of a training step.

        x_0: images, float [B, C, H, W].
        Returns the transformed images and their augmentation labels, float32 [B, num_channels].
        The label of an image that is not transformed is all zeros.
        """


@dataclass(frozen=True)
class EDMAugmentation(Augmentation):
    """Flips, isotropic and anisotropic scaling, rotation and translation (Karras et al. 2022, appendix F.2, table 6).

    probability: probability of each transformation except the horizontal flip, which always has probability 1/2.
    anisotropy_direction: sense in which the label measures the angle from the x-axis to the direction of anisotropic
        scaling: `counterclockwise` as in the code of Karras et al. (2022), or `clockwise`, which gives the seventh
        value of the label the other sign. The transformed images are the same.
    The augmentation label has 9 values. Transformed images can slightly exceed [-1, 1], because the filter overshoots.
    """

    probability: float = 0.12
    anisotropy_direction: Literal["clockwise", "counterclockwise"] = added(default="clockwise")

    num_channels = 9

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {self.probability}.")
        if self.anisotropy_direction not in ("clockwise", "counterclockwise"):
            raise ValueError(
                f"anisotropy_direction must be clockwise or counterclockwise, got {self.anisotropy_direction}."
            )

    def __call__(self, x_0: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        transforms = GeometricTransforms.sample(draws, self.probability)
        label = transforms.augmentation_label(self.anisotropy_direction).float()
        return transforms(x_0), label.to(x_0.device, non_blocking=x_0.is_cuda)


@dataclass(frozen=True)
class GeometricTransforms:
    """Parameters of each image's transformations, which are applied in the order of the fields.

    A transformation whose parameter is 0 does not change the image.
    All fields are float64 [B] on the CPU.
    flip_x, flip_y: 1 flips the image horizontally or vertically, respectively; 0 does not flip it.
    scale: exponent of the isotropic scale factor 2^(0.2 scale).
    rotation: counterclockwise angle in radians.
    anisotropy: exponent of the factor 2^(0.2 anisotropy), by which the image is scaled up along the direction and
        scaled down across it.
    direction: angle in radians, clockwise from the x-axis; 0 for images without anisotropic scaling and for a random
        half of the images with anisotropic scaling.
    shift_x, shift_y: translations to the right and downwards, in eighths of the image side.
    """

    flip_x: Tensor
    flip_y: Tensor
    scale: Tensor
    rotation: Tensor
    anisotropy: Tensor
    direction: Tensor
    shift_x: Tensor
    shift_y: Tensor

    @classmethod
    def sample(cls, draws: Draws, probability: float) -> "GeometricTransforms":
        """Sample the parameters for the images of a training step (Karras et al. 2022, table 6).

        draws: random numbers of the training step.
        probability: probability of each transformation except the horizontal flip.
        """
        # Computed for the global batch, because vectorized functions may round differently at another batch size.
        uniform, normal = draws.augmentation(num_uniform=10, num_normal=4)
        flip_y, scale, rotate, stretch, shift = (uniform[:, :5] < probability).double().unbind(1)
        coins = (uniform[:, 5:7] < 0.5).double()
        angles = math.pi * (2 * uniform[:, 7:9] - 1)
        oblique = (uniform[:, 9] < 0.5).double()  # the other images are scaled along an axis, as in the paper's code
        parameters = (
            coins[:, 0],
            flip_y * coins[:, 1],
            scale * normal[:, 0],
            rotate * angles[:, 0],
            stretch * normal[:, 1],
            stretch * oblique * angles[:, 1],
            shift * normal[:, 2],
            shift * normal[:, 3],
        )
        return cls(*(parameter[draws.positions] for parameter in parameters))

    def augmentation_label(self, anisotropy_direction: str = "clockwise") -> Tensor:
        """Return the values on which the network is conditioned (Karras et al. 2022, table 6): [B, 9], float64.

        anisotropy_direction: see `EDMAugmentation`.
        """
        # The y-axis points downwards. The paper's code stretches along (cos, -sin), and its label has +sin.
        sign = -1 if anisotropy_direction == "counterclockwise" else 1
        return torch.stack(
            [
                self.flip_x,
                self.flip_y,
                self.scale,
                self.rotation.cos() - 1,
                self.rotation.sin(),
                self.anisotropy * self.direction.cos(),
                sign * self.anisotropy * self.direction.sin(),
                self.shift_x,
                self.shift_y,
            ],
            dim=1,
        )

    def inverse(self, height: int, width: int) -> Tensor:
        """Return the affine maps from positions in transformed images to positions in images that are only flipped.

        Returns [B, 2, 3], float64, for (x, y, 1) in pixels from the image center, x to the right and y downwards.
        """
        shrink = torch.exp2(-LOG_SCALE_STD * self.anisotropy)
        axes = _rotation_matrices(self.direction)
        anisotropic = axes @ torch.diag_embed(torch.stack([shrink, 1 / shrink], dim=1)) @ axes.mT
        isotropic = torch.exp2(-LOG_SCALE_STD * self.scale)[:, None, None]
        # y points downwards, so a rotation matrix of the angle itself undoes the counterclockwise rotation.
        linear = isotropic * _rotation_matrices(self.rotation) @ anisotropic
        shift = TRANSLATION_STD * torch.stack([self.shift_x * width, self.shift_y * height], dim=1)[:, :, None]
        return torch.cat([linear, -linear @ shift], dim=2)

    def __call__(self, x: Tensor) -> Tensor:
        """Transform images [B, C, H, W].  Images that are only flipped are not resampled."""
        for flips, dim in ((self.flip_x, -1), (self.flip_y, -2)):
            x = torch.where(flips.bool().to(x.device, non_blocking=x.is_cuda)[:, None, None, None], x.flip(dim), x)
        parameters = torch.stack([self.scale, self.rotation, self.anisotropy, self.shift_x, self.shift_y])
        warped = parameters.any(0).nonzero().squeeze(1)
        if not len(warped):
            return x
        rows = warped.to(x.device, non_blocking=x.is_cuda)
        return x.index_copy(0, rows, warp(x[rows], self.inverse(*x.shape[-2:])[warped]))


def warp(x: Tensor, inverse: Tensor) -> Tensor:
    """Apply affine maps to images [B, C, H, W] without aliasing, at twice the resolution (Karras et al. 2020, app. B).

    inverse: affine maps from output to input positions, [B, 2, 3]; see `GeometricTransforms.inverse`.
    Images are padded by repeated reflection.
    The result for an image does not depend on the rest of the batch, because no matrix product or convolution is used.
    """
    height, width = x.shape[-2:]
    fine = _upsample(_upsample(x).mT).mT
    return _downsample(_downsample(_resample(fine, inverse.to(x, non_blocking=x.is_cuda), height, width)).mT).mT


def _rotation_matrices(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2)


def _upsample(x: Tensor) -> Tensor:
    """Upsample the last dimension by 2: [..., W] -> [..., 4 (W - 1) + 2].

    The result covers one period of the input that is padded by repeated reflection.
    """
    width = x.shape[-1]
    period = max(2 * (width - 1), 1)
    index = torch.arange(-(_HALF // 2), period + _HALF // 2 + 1, device=x.device) % period
    x = x[..., torch.minimum(index, period - index)]
    # Pixel m of the fine row is the sum over j of tap[m - 2j + 5] x[j]: odd taps for even m, and even taps for odd m.
    even = _filter(x, SYM6[::-2], start=0, step=1, count=period + 1)
    odd = _filter(x, SYM6[-2::-2], start=1, step=1, count=period + 1)
    return torch.stack([even, odd], dim=-1).flatten(-2)


def _downsample(fine: Tensor) -> Tensor:
    """Downsample the last dimension by 2: [..., 2 W + 10] -> [..., W].

    The filter is the adjoint of the upsampling filter, which is also the inverse of the upsampling.
    """
    return _filter(fine, SYM6, start=0, step=2, count=(fine.shape[-1] - 2 * (_HALF - 1)) // 2)


def _filter(x: Tensor, taps: tuple[float, ...], *, start: int, step: int, count: int) -> Tensor:
    # Uses only elementwise products and sums, because the rounding of a convolution may depend on the batch size.
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for k, tap in enumerate(taps, start):
        total = total + tap * x[..., k : k + step * (count - 1) + 1 : step]
    return total


def _resample(fine: Tensor, inverse: Tensor, height: int, width: int) -> Tensor:
    """Apply the affine maps `inverse` to upsampled images, and add the margin that `_downsample` removes.

    fine: images from `_upsample`.  inverse: see `warp`.  height, width: sides H, W of the images before upsampling.
    Returns [B, C, 2 H + 10, 2 W + 10].
    """
    x, y = _positions(width, inverse), _positions(height, inverse)[:, None]
    grid = []
    for axis, side in enumerate((width, height)):
        from_x, from_y, shift = inverse[:, axis, :, None, None].unbind(1)
        position = from_x * x + from_y * y + shift  # [B, 2 H + 10, 2 W + 10], pixels from the image center
        size = fine.shape[-1 - axis]
        index = (2 * position + (side - 1 + _CENTER)).remainder(size - 2)  # the last two pixels repeat the first two
        grid.append((2 * index + 1) / size - 1)
    return F.grid_sample(fine, torch.stack(grid, dim=-1), mode="bilinear", padding_mode="border", align_corners=False)


def _positions(side: int, like: Tensor) -> Tensor:
    """Return the pixel positions along one side of an upsampled image with margin: [2 * side + 10].

    The unit is a pixel of the image before upsampling, and the origin is the image center.
    side: side of the image before upsampling.  like: tensor whose dtype and device the result has.
    """
    index = torch.arange(1 - _HALF, 2 * side + _HALF - 1, dtype=like.dtype, device=like.device)
    return (index - _CENTER) / 2 - (side - 1) / 2

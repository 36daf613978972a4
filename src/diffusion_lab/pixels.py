"""Conversion between uint8 levels and float images in [-1, 1]."""

import torch
from torch import Tensor


def from_uint8(pixels: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [-1, 1].  `to_uint8` restores every level exactly.

    pixels: uint8 [B, C, H, W], or float levels in [0, 255], such as those of a resized image.
    Returns a new tensor of the same shape.

    >>> from diffusion_lab import from_uint8
    >>> from_uint8(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([-1.0000, -0.6000,  1.0000])
    """
    return pixels.to(torch.float32, copy=True).div_(127.5).sub_(1)  # in place: a batch needs one allocation, not three


def to_uint8(images: Tensor) -> Tensor:
    """Quantize images in [-1, 1] to uint8: round to the nearest level and clip to 0..255.

    images: float [B, C, H, W].  Returns uint8 of the same shape.
    Raises ValueError if a value is NaN or infinite, because such a value would become a valid level.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images must be finite, got NaN or infinity; the network or the sampler has diverged.")
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)

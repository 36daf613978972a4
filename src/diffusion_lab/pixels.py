"""Grey levels of images: uint8 and [-1, 1]."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as grey levels: rounded and clamped, so that a level survives the way there and back.

    images: float [B, C, H, W].  Returns uint8 of the same shape.
    Raises ValueError for values that are not finite: they would be counted as black.
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images must be finite, got NaN or infinity: the network or its sampler has diverged.")
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)

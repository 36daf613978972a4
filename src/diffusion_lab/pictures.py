"""Images -> picture files. The range is always [-1, 1]: a picture never hides saturation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from diffusion_lab.features import to_uint8


def grid(images: Tensor, num_columns: int, tile: int = 56) -> np.ndarray:
    """One picture of all images, uint8 [height, width, 3].  images: [B, C, H, W], uint8, or in [-1, 1].

    tile: small images are enlarged by a whole factor to at least about this side, so that they can be looked at.
    """
    pixels = images.cpu() if images.dtype == torch.uint8 else to_uint8(images.cpu())
    factor = max(1, round(tile / pixels.shape[-1]))
    pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    picture: np.ndarray = make_grid(pixels, nrow=num_columns, padding=2).permute(1, 2, 0).numpy()
    return picture


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Writes [height, width, 3] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def save_animation(frames: Sequence[np.ndarray], path: Path, *, seconds: float = 2.0, rest: float = 1.5) -> None:
    """Writes frames as an endless WebP animation of `seconds`, resting on the last frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [Image.fromarray(frame) for frame in frames]
    durations = [round(1000 * seconds / len(frames))] * (len(frames) - 1) + [round(1000 * rest)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=80)

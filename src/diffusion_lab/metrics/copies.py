"""Are samples copies of training images?"""

import torch
from torch import Tensor


def nearest_distances(pixels: Tensor, images: Tensor) -> Tensor:
    """Euclidean distance in pixel space from each of `pixels` to the nearest of `images`.

    pixels: uint8 [B, C, H, W].  images: uint8 [N, C, H, W].  Returns [B], float32, for grey levels scaled to [0, 1].
    """
    candidates = images.flatten(1).float() / 255
    nearest = [torch.cdist(part.flatten(1).float() / 255, candidates).amin(1) for part in torch.split(pixels, 256)]
    return torch.cat(nearest)

"""Are samples copies of training images?"""

import torch
from torch import Tensor


def nearest_distances(pixels: Tensor, images: Tensor) -> Tensor:
    """Euclidean distance in pixel space from each of `pixels` to the nearest of `images`.

    pixels: uint8 [B, C, H, W].  images: uint8 [N, C, H, W].  Returns [B], float32, for grey levels scaled to [0, 1].
    """
    samples, candidates = pixels.flatten(1).float() / 255, images.flatten(1).float() / 255
    # cdist finds the nearest fast but by differences of large sums: its own distance of a copy would not be 0.
    index = torch.cat([torch.cdist(part, candidates).argmin(1) for part in torch.split(samples, 256)])
    return (samples - candidates[index]).square().sum(dim=1).sqrt()

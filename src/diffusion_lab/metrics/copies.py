"""Search for samples that are copies of training images."""

import torch
from torch import Tensor


def nearest_distances(pixels: Tensor, images: Tensor) -> Tensor:
    """Return the Euclidean distance in pixel space from each image in `pixels` to the nearest image in `images`.

    pixels: uint8 [B, C, H, W].  images: uint8 [N, C, H, W].  Returns float32 [B], for pixels scaled to [0, 1].
    """
    samples, candidates = pixels.flatten(1).float() / 255, images.flatten(1).float() / 255
    # cdist only selects the nearest image. It subtracts large sums, so that the distance that it returns for a copy is
    # not exactly 0.
    index = torch.cat([torch.cdist(part, candidates).argmin(1) for part in torch.split(samples, 256)])
    return (samples - candidates[index]).square().sum(dim=1).sqrt()

"""The pixels themselves as features."""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.features.features import Features


class RawPixels(Features):
    """The values of all pixels, scaled to [0, 1]; images of more than 32 pixels per side are downsampled by averaging.

    The Euclidean distance between two images is 1/255 if they differ by one gray level in one value. Without a network,
    the features recognize copies with the same pixels, but not copies that are shifted or have another contrast.
    """

    name = "pixels"
    num_features = None
    channels = (1, 3)
    side = 32
    scale: Tensor
    resize = f"to at most {side}: average of areas"
    weights_sha256 = hashlib.sha256(b"").hexdigest()  # there are no weights; without a value, nothing is cached

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(255.0))
        self.eval()

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        values = pixels.float()
        if pixels.shape[-1] > self.side:
            values = F.adaptive_avg_pool2d(values, self.side)
        return {"pooled": (values / self.scale).flatten(1)}  # [B, C * H * W]

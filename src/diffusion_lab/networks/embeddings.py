"""Embeddings of time, which all networks use."""

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(time: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """Sines, then cosines, of time at geometric frequencies (Ho et al. 2020, code; after Vaswani et al. 2017).

    time: [B].  Returns [B, channels], float32; channels must be even and at least 4.
    """
    half = channels // 2
    # half - 1: the last frequency is exactly 1 / max_period, as in the code of Ho et al.
    exponent = torch.arange(half, dtype=torch.float32, device=time.device) / (half - 1)
    angle = time.float()[:, None] * torch.exp(-math.log(max_period) * exponent)  # [B, half]
    return torch.cat([angle.sin(), angle.cos()], dim=1)  # [B, channels]


class TimeEmbedding(nn.Module):
    """Sinusoids through two linear layers: [B] -> [B, embedding_channels].

    num_augmentation_channels: numbers that are told of an image's augmentation; a linear map without bias adds them to
        the sinusoids (Karras et al. 2022, code), so that 0 says nothing.
    """

    def __init__(self, channels: int, embedding_channels: int, num_augmentation_channels: int = 0) -> None:
        super().__init__()
        if channels < 4 or channels % 2:
            raise ValueError(f"channels must be even and at least 4 to embed the time, got {channels}.")
        if num_augmentation_channels < 0:
            raise ValueError(f"num_augmentation_channels must be at least 0, got {num_augmentation_channels}.")
        self.channels, self.num_augmentation_channels = channels, num_augmentation_channels
        self.layers = nn.Sequential(
            nn.Linear(channels, embedding_channels), nn.SiLU(), nn.Linear(embedding_channels, embedding_channels)
        )
        if num_augmentation_channels:
            self.augmentation = nn.Linear(num_augmentation_channels, channels, bias=False)

    def forward(self, time: Tensor, augmentation: Tensor | None = None) -> Tensor:
        """time: [B].  augmentation: [B, num_augmentation_channels]; None is 0.  Returns [B, embedding_channels].

        Raises ValueError where the augmentation has another length.
        """
        embedding = sinusoidal_embedding(time, self.channels).to(next(self.parameters()).dtype)
        if augmentation is not None:
            embedding = embedding + self._told(augmentation.to(embedding.dtype))
        result: Tensor = self.layers(embedding)
        return result

    def _told(self, augmentation: Tensor) -> Tensor:
        if augmentation.shape[1] != self.num_augmentation_channels or not self.num_augmentation_channels:
            raise ValueError(
                f"augmentation must be told in num_augmentation_channels={self.num_augmentation_channels} numbers an "
                f"image, got {augmentation.shape[1]}."
            )
        told: Tensor = self.augmentation(augmentation)
        return told

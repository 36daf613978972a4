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
    """Sinusoids through two linear layers: [B] -> [B, embedding_channels]."""

    def __init__(self, channels: int, embedding_channels: int) -> None:
        super().__init__()
        if channels < 4 or channels % 2:
            raise ValueError(f"channels must be even and at least 4 to embed the time, got {channels}.")
        self.channels = channels
        self.layers = nn.Sequential(
            nn.Linear(channels, embedding_channels), nn.SiLU(), nn.Linear(embedding_channels, embedding_channels)
        )

    def forward(self, time: Tensor) -> Tensor:
        sinusoids = sinusoidal_embedding(time, self.channels)
        embedding: Tensor = self.layers(sinusoids.to(next(self.parameters()).dtype))
        return embedding

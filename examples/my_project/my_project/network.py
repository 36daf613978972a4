"""A residual network without changes of resolution, as a denoising network."""

import torch
from torch import Tensor, nn

from diffusion_lab.networks import Condition, Labels, Network


class Block(nn.Module):
    """Two convolutions with a shift between them that depends on time and label."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.shift = nn.Linear(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y = self.first(self.norm(x)) + self.shift(embedding)[:, :, None, None]  # [B, C, H, W]
        return x + self.second(torch.nn.functional.silu(y))


class FlatResNet(Network):
    """A network of residual blocks at one resolution.

    channels: width, a multiple of 8.  depth: number of blocks.
    patch_size: height and width of the pixel patches that are folded into channels.
    labels: classes that the network is conditioned on, with a null label for guidance.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, resolution: int, channels: int = 64, depth: int = 5,
        patch_size: int = 4, labels: Labels | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_channels, self.out_channels, self.resolution = in_channels, out_channels, resolution
        self.labels = labels or Labels()
        self.time_embedding = nn.Sequential(nn.Linear(16, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.label_embedding = nn.Embedding(max(1, self.labels.num_rows), channels)
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, channels, 3, padding=1)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(depth))
        self.conv_out = nn.Conv2d(channels, out_channels * patch_size**2, 3, padding=1)
        self.register_buffer("frequencies", torch.pi / 1000 * 2.0 ** torch.arange(8), persistent=False)
        self.fold, self.unfold = nn.PixelUnshuffle(patch_size), nn.PixelShuffle(patch_size)

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        angles = time[:, None] * self.frequencies  # [B, 8]; the time of a discrete schedule is its step index
        embedding = self.time_embedding(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.labels.num_classes and condition.label is not None:
            embedding = embedding + self.label_embedding(condition.label)
        x = self.conv_in(self.fold(x_t))
        for block in self.blocks:
            x = block(x, embedding)
        return self.unfold(self.conv_out(x))

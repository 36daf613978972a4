"""The ADM classifier for noisy images: the U-Net encoder and attention pooling (Dhariwal & Nichol 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab import contracts
from diffusion_lab.networks.blocks import Blocks, Levels, middle, normalization, zero
from diffusion_lab.networks.embeddings import Sinusoids, TimeEmbedding
from diffusion_lab.networks.network import ClassifierNetwork


class AttentionPooling(nn.Module):
    """Attention whose query is the mean of all positions: [B, C, H, W] -> [B, out_channels] (Radford et al. 2021)."""

    def __init__(self, channels: int, out_channels: int, *, side: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positions = nn.Parameter(torch.randn(1, side**2 + 1, channels) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        # Initialized to 0, in contrast to the code of the paper, so that an untrained classifier assigns the same
        # probability to every class.
        self.out = zero(nn.Linear(channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT  # [B, H W, C]
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positions
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, heads, 1 + H W, channels per head]
        pooled = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # only the first position is used
        output: Tensor = self.out(pooled.flatten(1))
        return output


class HalfUNet(ClassifierNetwork):
    """The encoder of a U-Net with attention pooling: (noisy image, time) -> logits [B, num_classes].

    in_channels, num_classes, resolution: see `ClassifierNetwork`.  All other arguments: see `UNet`.
    attention_resolutions: by default the levels of resolution 32, 16 and 8, or the largest level below 32.
    Raises the errors of `UNet`, and ValueError for fewer than two classes.

    >>> from diffusion_lab import HalfUNet
    >>> network = HalfUNet(3, 10, resolution=32, channels=32, channel_multipliers=(1, 2), attention_resolutions=(16,))
    >>> network(torch.randn(2, 3, 32, 32), torch.tensor([0.0, 999.0])).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        resolution: int,
        channels: int = 128,
        channel_multipliers: Sequence[float] = (1, 2, 3, 4),
        num_blocks: int | Sequence[int] = 2,
        attention_resolutions: Sequence[int] | None = None,
        blocks: Blocks | None = None,
        patch_size: int = 1,
        sinusoids: Sinusoids | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        levels = Levels.of(
            resolution,
            channels=channels,
            channel_multipliers=channel_multipliers,
            num_blocks=num_blocks,
            attention_resolutions=attention_resolutions,
            default_attention=(32, 16, 8),  # Dhariwal & Nichol (2021), code
            patch_size=patch_size,
        )
        self.in_channels, self.num_classes, self.resolution = in_channels, num_classes, resolution
        self.patch_size, width = patch_size, levels.widths[-1]
        self.blocks = blocks = blocks or Blocks()
        self.time_embedding = TimeEmbedding(channels, 4 * channels, sinusoids=sinusoids)
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, levels.stem, 3, padding=1)
        self.down = nn.ModuleList(levels.encoder(blocks, 4 * channels)[0])
        self.middle = middle(width, blocks, 4 * channels)
        self.norm_out = normalization(width, blocks.num_groups, blocks.norm_eps)
        self.pool = AttentionPooling(width, num_classes, side=levels.sides[-1], num_heads=blocks.heads(width))

    @property
    def conventions(self) -> dict[str, Any]:
        return contracts.conventions(self.blocks)

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """See `ClassifierNetwork.forward`.

        Raises ValueError unless x_t is [B, in_channels, resolution, resolution].
        """
        if x_t.shape[1:] != (self.in_channels, self.resolution, self.resolution):
            raise ValueError(
                f"x_t must be [B, {self.in_channels}, {self.resolution}, {self.resolution}], got {list(x_t.shape)}."
            )
        embedding = self.time_embedding(time)
        x = self.conv_in(F.pixel_unshuffle(x_t.to(self.conv_in.weight.dtype), self.patch_size))
        for stage in self.down:
            x = stage(x, embedding)
        x = self.middle(x, embedding)
        # The logits have the precision of the weights even under autocast: guidance differentiates their log-softmax.
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.pool(F.silu(self.norm_out(x.to(self.conv_in.weight.dtype))))
        return logits

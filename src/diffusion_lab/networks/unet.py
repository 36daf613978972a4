"""The U-Net of DDPM (Ho et al. 2020, appendix B) and ADM (Dhariwal & Nichol 2021, section 3), whole in one file."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.networks.condition import Condition, Labels
from diffusion_lab.networks.embeddings import TimeEmbedding

Resize = Literal["down", "up"] | None


def zero(module: nn.Module) -> nn.Module:
    """The module with all its parameters 0: a residual branch that starts as nothing (Ho et al. 2020, code)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def normalization(channels: int, num_groups: int) -> nn.GroupNorm:
    """Group normalisation.  Raises ValueError unless num_groups divides channels."""
    if channels % num_groups:
        raise ValueError(f"num_groups must divide every level's channels, got num_groups={num_groups} for {channels}.")
    return nn.GroupNorm(num_groups, channels)


class Downsample(nn.Module):
    """Half the side, by a strided convolution: [B, C, H, W] -> [B, C, H/2, W/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # Padded at the right and the bottom alone, as TensorFlow's "SAME" did for the networks of Ho et al.
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Twice the side, by nearest neighbour and a convolution: [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class ResidualBlock(nn.Module):
    """Two convolutions around the time embedding, which shifts, or scales and shifts, the second normalisation.

    resize: a block that also halves or doubles the side (Brock et al. 2019, as used by ADM).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        dropout: float,
        num_groups: int,
        scale_shift: bool,
        resize: Resize = None,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.norm_in = normalization(in_channels, num_groups)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_channels, out_channels * (2 if scale_shift else 1))
        self.norm_out = normalization(out_channels, num_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y = self._resized(F.silu(self.norm_in(x)))
        y = self.conv_in(y)  # [B, out, H', W']
        shift = self.embedding(F.silu(embedding))[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            y = self.norm_out(y) * (1 + scale) + shift
        else:
            y = self.norm_out(y + shift)
        y = self.conv_out(self.dropout(F.silu(y)))
        result: Tensor = self.skip(self._resized(x)) + y
        return result

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        if self.resize == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class Attention(nn.Module):
    """Self-attention over all positions: [B, C, H, W] -> the same."""

    def __init__(self, channels: int, *, head_channels: int, num_groups: int) -> None:
        super().__init__()
        if head_channels < 1 or channels % head_channels:
            raise ValueError(
                f"head_channels must divide the channels of levels with attention, got {head_channels} for {channels}."
            )
        self.num_heads = channels // head_channels
        self.norm = normalization(channels, num_groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.num_heads, channels // self.num_heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # [B, heads, positions, channels per head]
        y = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)
        result: Tensor = x + self.out(y)
        return result


class Stage(nn.ModuleList):
    """Modules run one after the other, each told the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for module in self:
            x = module(x, embedding)
        return x


class UNet(nn.Module):
    """Convolutions on a pyramid of sides, with skips from the way down to the way up.

    in_channels, out_channels: of the image and of the answer.  resolution: side of the image.
    channels: of the first level; level i has channels * channel_multipliers[i] and half the side of the one before.
    num_blocks: residual blocks a level (one more on the way up).
    attention_resolutions: sides (after the patches) of the levels whose blocks are followed by attention.
    head_channels: channels of one attention head; None is one head.
    num_groups: of every group normalisation.
    scale_shift: the time embedding also scales (adaptive group normalisation, Dhariwal & Nichol 2021, section 3.1).
    resize_in_blocks: sides change inside residual blocks (ADM) instead of in strided convolutions (DDPM).
    labels: the classes it is told, if any.
    patch_size: side of the squares of pixels that are folded into channels first and unfolded last; 1 is none.
    num_augmentation_channels: numbers that it is told of an image's augmentation; 0 is none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        resolution: int,
        channels: int = 128,
        channel_multipliers: Sequence[float] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        head_channels: int | None = None,
        dropout: float = 0.0,
        num_groups: int = 32,
        scale_shift: bool = False,
        resize_in_blocks: bool = False,
        labels: Labels | None = None,
        patch_size: int = 1,
        num_augmentation_channels: int = 0,
    ) -> None:
        super().__init__()
        widths = [int(channels * multiplier) for multiplier in channel_multipliers]
        sides = _sides(resolution, patch_size, len(widths), attention_resolutions)
        self.resolution, self.in_channels, self.out_channels = resolution, in_channels, out_channels
        self.patch_size, self.num_augmentation_channels = patch_size, num_augmentation_channels
        self.labels = labels or Labels()
        embedding_channels = 4 * channels

        def block(in_width: int, out_width: int, resize: Resize = None) -> ResidualBlock:
            return ResidualBlock(
                in_width,
                out_width,
                embedding_channels=embedding_channels,
                dropout=dropout,
                num_groups=num_groups,
                scale_shift=scale_shift,
                resize=resize,
            )

        def attention(width: int) -> Attention:
            return Attention(
                width, head_channels=width if head_channels is None else head_channels, num_groups=num_groups
            )

        self.time_embedding = TimeEmbedding(channels, embedding_channels, num_augmentation_channels)
        self.label_embedding = (
            nn.Embedding(self.labels.num_rows, embedding_channels) if self.labels.num_classes else None
        )
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, widths[0], 3, padding=1)

        down: list[Stage] = []
        skips = [width := widths[0]]
        for level, (level_width, side) in enumerate(zip(widths, sides, strict=True)):
            for _ in range(num_blocks):
                down.append(Stage([block(width, level_width)]))
                width = level_width
                if side in attention_resolutions:
                    down[-1].append(attention(width))
                skips.append(width)
            if level < len(widths) - 1:
                down.append(Stage([block(width, width, "down") if resize_in_blocks else Downsample(width)]))
                skips.append(width)

        self.middle = Stage([block(width, width), attention(width), block(width, width)])

        up: list[Stage] = []
        for level, (level_width, side) in reversed(list(enumerate(zip(widths, sides, strict=True)))):
            for _ in range(num_blocks + 1):
                up.append(Stage([block(width + skips.pop(), level_width)]))
                width = level_width
                if side in attention_resolutions:
                    up[-1].append(attention(width))
            if level > 0:
                up[-1].append(block(width, width, "up") if resize_in_blocks else Upsample(width))

        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.norm_out = normalization(width, num_groups)
        self.conv_out = zero(nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1))

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x_t: [B, in_channels, H, W].  time: [B], as the schedule tells it.  Returns [B, out_channels, H, W].

        Raises ValueError for images of another shape, and where labels are missing, or given to no use as an
        augmentation can be.
        """
        if x_t.shape[1:] != (self.in_channels, self.resolution, self.resolution):
            raise ValueError(
                f"x_t must be [B, {self.in_channels}, {self.resolution}, {self.resolution}], got {list(x_t.shape)}."
            )
        embedding = self._embedding(time, condition)
        x = self.conv_in(F.pixel_unshuffle(x_t.to(self.conv_in.weight.dtype), self.patch_size))
        skips = [x]
        for stage in self.down:
            x = stage(x, embedding)
            skips.append(x)
        x = self.middle(x, embedding)
        for stage in self.up:
            x = stage(torch.cat([x, skips.pop()], dim=1), embedding)
        # The answer leaves in the precision of the weights even under autocast: bfloat16 has 8 bits, and samplers
        # subtract it from x_t.
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv_out(F.silu(self.norm_out(x.to(self.conv_out.weight.dtype))))
        return F.pixel_shuffle(x, self.patch_size)

    def _embedding(self, time: Tensor, condition: Condition) -> Tensor:
        embedding: Tensor = self.time_embedding(time, condition.augmentation)
        label = condition.label
        if (label is None) != (self.label_embedding is None):
            wanted = f"labels in 0..{self.labels.num_rows - 1}" if self.label_embedding is not None else "no label"
            raise ValueError(f"label must be given to this network as {wanted}, got {label}.")
        return embedding if self.label_embedding is None else embedding + self.label_embedding(label)


def _sides(resolution: int, patch_size: int, num_levels: int, attention_resolutions: Sequence[int]) -> list[int]:
    """The side of each level.  Raises ValueError where the image cannot be halved so often."""
    if num_levels < 1:
        raise ValueError("channel_multipliers must hold one number for each level, got none.")
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, got {patch_size}.")
    factor = patch_size * 2 ** (num_levels - 1)
    if resolution < 1 or resolution % factor:
        larger = -(-resolution // factor) * factor
        raise ValueError(
            f"resolution must be divisible by {factor} (patch_size={patch_size} and {num_levels} levels, each half the "
            f"side of the one before), got {resolution}; try data.resolution={larger} or fewer channel_multipliers."
        )
    sides = [resolution // patch_size // 2**level for level in range(num_levels)]
    if attention_resolutions and not set(attention_resolutions) & set(sides):
        raise ValueError(
            f"attention_resolutions must name sides among {sides} or be empty, got {list(attention_resolutions)}."
        )
    return sides

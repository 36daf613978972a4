"""Blocks of the U-Nets of DDPM, ADM and DDPM++, and the encoder that they share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_lab.contracts import added

Resize = Literal["down", "up"] | None
Initialization = Literal["torch", "ddpm", "ddpmpp"]


def zero(module: nn.Module) -> nn.Module:
    """Set all parameters of a module to 0, so that a residual branch starts as the identity (Ho et al. 2020, code)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def initialize(network: nn.Module, initialization: Initialization) -> None:
    """Set the linear and convolution layers of a U-Net to initial values, see `Blocks`."""
    if initialization == "torch":
        return
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            is_last = name.rpartition(".")[2] in ("conv_out", "out")  # the layers that `zero` sets to 0
            nn.init.xavier_uniform_(module.weight, gain=1e-5 if is_last else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Attention):
            # A layer with three times as many outputs as inputs has variance 1 / (2 channels) without a gain.
            nn.init.xavier_uniform_(module.qkv.weight, gain=math.sqrt(2 if initialization == "ddpm" else 0.2))


def normalization(channels: int, num_groups: int, eps: float) -> nn.GroupNorm:
    """Return a group normalization layer.  Raises ValueError unless num_groups divides channels."""
    if channels % num_groups:
        raise ValueError(
            f"num_groups must divide the channels of every level, got num_groups={num_groups} for {channels} channels."
        )
    return nn.GroupNorm(num_groups, channels, eps)


class Downsample(nn.Module):
    """Strided convolution that halves the side: [B, C, H, W] -> [B, C, H/2, W/2].

    symmetric: whether to pad all four sides (Nichol & Dhariwal 2021, code), or only the right and the bottom, like the
        "SAME" padding of TensorFlow in the networks of Ho et al. (2020).
    """

    def __init__(self, channels: int, *, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y: Tensor = self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Nearest-neighbor interpolation to twice the side, and a convolution: [B, C, H, W] -> [B, C, 2H, 2W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class ResidualBlock(nn.Module):
    """Two convolutions; the time embedding shifts, or scales and shifts, the second normalization.

    resize: whether the block also halves (down) or doubles (up) the resolution (Brock et al. 2019, as used by ADM).
    project: whether the skip connection has a 1 x 1 convolution even if the number of channels stays the same.
    gain: factor on the output, which is the sum of both branches.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        dropout: float,
        num_groups: int,
        norm_eps: float,
        scale_shift: bool,
        resize: Resize = None,
        project: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize, self.gain = scale_shift, resize, gain
        self.norm_in = normalization(in_channels, num_groups, norm_eps)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_channels, out_channels * (2 if scale_shift else 1))
        self.norm_out = normalization(out_channels, num_groups, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        projected = project or in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if projected else nn.Identity()

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
        return result if self.gain == 1 else self.gain * result

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        if self.resize == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class Attention(nn.Module):
    """Self-attention over all positions: [B, C, H, W] -> [B, C, H, W].  gain: factor on the output."""

    def __init__(self, channels: int, *, num_heads: int, num_groups: int, norm_eps: float, gain: float = 1.0) -> None:
        super().__init__()
        self.num_heads, self.gain = num_heads, gain
        self.norm: nn.Module = normalization(channels, num_groups, norm_eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        zero(self.out)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # The 1 x 1 convolutions are applied as linear maps of positions: the fused attention kernel requires that the
        # channels of a head are contiguous in memory.
        tokens = _linear(self.qkv, self.norm(x).flatten(2).mT)  # [B, positions, 3 C]
        qkv = tokens.view(*tokens.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, heads, positions, channels per head]
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, positions, C]
        result: Tensor = x + _linear(self.out, y).mT.reshape(x.shape)
        return result if self.gain == 1 else self.gain * result


def _linear(convolution: nn.Module, x: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution to a tensor whose last dimension is the channels."""
    if isinstance(convolution, nn.Conv2d):
        return F.linear(x, convolution.weight.flatten(1), convolution.bias)
    y: Tensor = convolution(x.mT[..., None])  # a layer that adds something to the convolution, such as `training.LoRA`
    return y[..., 0].mT


class Stage(nn.ModuleList):
    """Modules applied in sequence, each of which also receives the embedding.

    checkpointing: whether to recompute the activations inside a module in the backward pass instead of storing them
        (Chen et al. 2016). This saves memory, makes a training step about a third slower, and does not change
        the result.
    """

    def __init__(self, modules: Sequence[nn.Module], *, checkpointing: bool = False) -> None:
        super().__init__(modules)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for module in self:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(module, x, embedding, use_reentrant=False)
            else:
                x = module(x, embedding)
        return x


@dataclass(frozen=True)
class Blocks:
    """Settings that all blocks of a network share.

    dropout: dropout probability before the last convolution of each residual block.
    num_groups: number of groups of each group normalization.
    scale_shift: whether the time embedding also scales the activations instead of only shifting them (adaptive group
        normalization, Dhariwal & Nichol 2021, section 3.1).
    resize: module that changes the resolution between levels: a `strided` convolution as in Ho et al. (2020), a
        `strided_symmetric` convolution as in Nichol & Dhariwal (2021), a `residual` block as in ADM, or a `projected`
        residual block as in DDPM++ (Song et al. 2021).
    num_heads, head_channels: number of attention heads, or channels of each head; a single head if both are None.
    rescale: whether to divide the output of each block, the sum of both branches, by sqrt(2) (Song et al. 2021).
    checkpointing: whether to recompute activations in the backward pass, see `Stage`.
    norm_eps: number that each group normalization adds to the variance of a group (Wu & He 2018, eq. 2): 1e-6 in the
        networks of Ho et al. (2020, code) and Karras et al. (2022, code of DDPM++), 1e-5 in those of Nichol & Dhariwal
        (2021, code) and Dhariwal & Nichol (2021, code).
    initialization: initial weights of linear and convolution layers in a `UNet`. `torch` keeps the defaults of PyTorch,
        with variance 1 / (3 fan_in) and random biases, and sets the last layer of each branch and of the network to 0
        (Dhariwal & Nichol 2021, code). `ddpm` has variance 2 / (fan_in + fan_out), biases of 0, and 1e-5 times such
        weights in the last layers (Ho et al. 2020, code). `ddpmpp` is `ddpm` with variance 0.1 / channels instead of
        1 / channels in the queries, keys and values of attention (Song et al. 2021, code; Karras et al. 2022, code).
    middle_norm: whether the attention in the middle block normalizes its input, as in all papers. `UNet2DModel` of
        `diffusers` has no such normalization if resnet_time_scale_shift is scale_shift.
    Raises ValueError for a setting out of its range, and if both num_heads and head_channels are given.
    """

    dropout: float = 0.0
    num_groups: int = 32
    scale_shift: bool = False
    resize: Literal["strided", "strided_symmetric", "residual", "projected"] = "strided"
    num_heads: int | None = None
    head_channels: int | None = None
    rescale: bool = False
    checkpointing: bool = False
    norm_eps: float = added(default=1e-5)
    initialization: Initialization = "torch"
    middle_norm: bool = added(default=True)

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        if self.num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {self.num_groups}.")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be above 0, got {self.norm_eps}.")
        if self.initialization not in ("torch", "ddpm", "ddpmpp"):
            raise ValueError(f"initialization must be torch, ddpm or ddpmpp, got {self.initialization}.")
        if self.resize not in ("strided", "strided_symmetric", "residual", "projected"):
            raise ValueError(f"resize must be strided, strided_symmetric, residual or projected, got {self.resize}.")
        if self.num_heads is not None and self.head_channels is not None:
            raise ValueError(
                f"num_heads must be null if head_channels is given, got num_heads={self.num_heads} and "
                f"head_channels={self.head_channels}."
            )

    @property
    def gain(self) -> float:
        """Factor on the output of each block."""
        return math.sqrt(0.5) if self.rescale else 1.0

    def stage(self, *modules: nn.Module) -> Stage:
        return Stage(modules, checkpointing=self.checkpointing)

    def residual(
        self, in_channels: int, out_channels: int, embedding_channels: int, resize: Resize = None
    ) -> ResidualBlock:
        return ResidualBlock(
            in_channels,
            out_channels,
            embedding_channels=embedding_channels,
            dropout=self.dropout,
            num_groups=self.num_groups,
            norm_eps=self.norm_eps,
            scale_shift=self.scale_shift,
            resize=resize,
            project=resize is not None and self.resize == "projected",
            gain=self.gain,
        )

    def attention(self, channels: int) -> Attention:
        """Return an attention block.  Raises ValueError unless the heads divide the channels."""
        num_heads = self.heads(channels)
        return Attention(
            channels, num_heads=num_heads, num_groups=self.num_groups, norm_eps=self.norm_eps, gain=self.gain
        )

    def heads(self, channels: int) -> int:
        """Return the number of attention heads.  Raises ValueError unless the heads divide the channels."""
        name = "num_heads" if self.head_channels is None else "head_channels"
        number = (self.num_heads or 1) if self.head_channels is None else self.head_channels
        if number < 1 or channels % number:
            raise ValueError(
                f"{name} must divide the channels of levels with attention, got {number} for {channels} channels."
            )
        return number if self.head_channels is None else channels // number

    def downsample(self, channels: int, embedding_channels: int) -> nn.Module:
        """Return a module that halves the resolution."""
        if self.resize.startswith("strided"):
            return Downsample(channels, symmetric=self.resize == "strided_symmetric")
        return self.residual(channels, channels, embedding_channels, "down")

    def upsample(self, channels: int, embedding_channels: int) -> nn.Module:
        """Return a module that doubles the resolution."""
        if self.resize.startswith("strided"):
            return Upsample(channels)
        return self.residual(channels, channels, embedding_channels, "up")


@dataclass(frozen=True)
class Levels:
    """Sizes of the levels of a U-Net.

    stem: input channels of the first level.  widths: channels of each level.
    sides: feature-map resolution of each level, in patches.
    depths: number of residual blocks of each level.
    attention_resolutions: feature-map resolutions of the levels whose blocks are followed by attention.
    """

    stem: int
    widths: tuple[int, ...]
    sides: tuple[int, ...]
    depths: tuple[int, ...]
    attention_resolutions: tuple[int, ...]

    @classmethod
    def of(
        cls,
        side: int,
        *,
        channels: int,
        channel_multipliers: Sequence[float],
        num_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int] | None,
        default_attention: Sequence[int],
        patch_size: int = 1,
    ) -> "Levels":
        """Return the levels of a U-Net with these settings.  side: side of the image in pixels.  Others: see `UNet`.

        default_attention: resolutions for attention_resolutions=None. If no level has one of them, the largest level
            below them is used, if there is one.
        Raises ValueError if the resolution cannot be halved often enough, if num_blocks does not match the levels, or
            if a level has no channels.
        """
        num_levels = len(channel_multipliers)
        # Other numbers of `channels` are refused with the embedding of the time.
        if not all(0 < factor < math.inf and int(max(channels, 1) * factor) for factor in channel_multipliers):
            raise ValueError(
                "channel_multipliers must be numbers above 0 with which each level has at least one channel, got "
                f"{list(channel_multipliers)} for channels={channels}."
            )
        sides = _sides(side, patch_size, num_levels)
        if attention_resolutions is None:
            below = [side for side in sides if side <= max(default_attention)]
            attention_resolutions = [side for side in below if side in default_attention] or below[:1]
        elif attention_resolutions and not set(attention_resolutions) & set(sides):
            raise ValueError(
                f"attention_resolutions must be empty or contain at least one of {sides} (the feature-map resolutions "
                f"of the levels), got {list(attention_resolutions)}."
            )
        depths = [num_blocks] * num_levels if isinstance(num_blocks, int) else list(num_blocks)
        if len(depths) != num_levels or not all(type(depth) is int and depth >= 1 for depth in depths):
            raise ValueError(
                f"num_blocks must be at least 1 (one number for all {num_levels} levels, or one number per level), got "
                f"{num_blocks if isinstance(num_blocks, int) else depths}."
            )
        widths = [int(channels * multiplier) for multiplier in channel_multipliers]
        # A first multiplier of 0.5 also narrows the first convolution (Dhariwal & Nichol 2021, code), but a first
        # multiplier of 2 does not widen it (Song et al. 2021, code).
        stem = min(channels, widths[0])
        return cls(stem, tuple(widths), tuple(sides), tuple(depths), tuple(attention_resolutions))

    def __len__(self) -> int:
        return len(self.widths)

    def encoder(self, blocks: Blocks, embedding_channels: int) -> tuple[list[Stage], list[int]]:
        """Return the stages of the encoder and the channels of its skip connections, with the stem first."""
        stages, after = list[Stage](), [width := self.stem]
        for level, (level_width, side, depth) in enumerate(zip(self.widths, self.sides, self.depths, strict=True)):
            for _ in range(depth):
                stages.append(blocks.stage(blocks.residual(width, level_width, embedding_channels)))
                width = level_width
                if side in self.attention_resolutions:
                    stages[-1].append(blocks.attention(width))
                after.append(width)
            if level < len(self) - 1:
                stages.append(blocks.stage(blocks.downsample(width, embedding_channels)))
                after.append(width)
        return stages, after


def middle(width: int, blocks: Blocks, embedding_channels: int) -> Stage:
    """Return the middle block of a U-Net, at the lowest resolution: attention between two residual blocks."""
    first, attention = blocks.residual(width, width, embedding_channels), blocks.attention(width)
    if not blocks.middle_norm:
        attention.norm = nn.Identity()
    return blocks.stage(first, attention, blocks.residual(width, width, embedding_channels))


def _sides(resolution: int, patch_size: int, num_levels: int) -> list[int]:
    """Return the feature-map resolution of each level.  Raises ValueError if it cannot be halved often enough."""
    if num_levels < 1:
        raise ValueError("channel_multipliers must have at least one number (one per level), got none.")
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1, got {patch_size}.")
    factor = patch_size * 2 ** (num_levels - 1)
    if resolution < 1 or resolution % factor:
        larger = -(-resolution // factor) * factor
        raise ValueError(
            f"resolution must be divisible by {factor} (patch_size={patch_size} and {num_levels} levels, each half "
            f"the resolution of the previous one), got {resolution}; try resolution={larger} or fewer "
            "channel_multipliers."
        )
    return [resolution // patch_size // 2**level for level in range(num_levels)]

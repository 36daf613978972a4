"""The diffusion transformer with adaLN-Zero blocks (Peebles & Xie 2023, section 3.2)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_lab import contracts
from diffusion_lab.networks.blocks import zero
from diffusion_lab.networks.condition import Condition, Labels
from diffusion_lab.networks.embeddings import Sinusoids, TimeEmbedding, embed_label, require_label, with_condition_image
from diffusion_lab.networks.network import Network

TIME_CHANNELS = 256
"""Channels of the sinusoidal time embedding (Peebles & Xie 2023, code)."""


@dataclass(frozen=True)
class DiTVariant:
    """Constants in which implementations of `DiT` differ. The defaults are those of Peebles & Xie (2023, code).

    time_kind: kind of the sinusoids of the time, see `Sinusoids`. `DiTTransformer2DModel` of `diffusers` has the
        frequencies of ddpm.
    mlp_norm_eps: number that the normalization before an MLP adds to the variance. It is 1e-5 by default in
        `DiTTransformer2DModel` of `diffusers`.
    Raises ValueError for another kind, and unless mlp_norm_eps is above 0.

    >>> from diffusion_lab import DiT, DiTVariant
    >>> network = DiT(4, 4, resolution=8, channels=16, depth=1, num_heads=2, variant=DiTVariant("ddpm"))
    >>> network.conventions  # settings that differ from those of the paper's code, for fingerprints
    {'time_kind': 'ddpm'}
    """

    time_kind: Literal["adm", "ddpm"] = contracts.added(default="adm")
    mlp_norm_eps: float = contracts.added(default=1e-6)

    def __post_init__(self) -> None:
        if self.time_kind not in ("adm", "ddpm"):
            raise ValueError(f"time_kind must be adm or ddpm, got {self.time_kind}.")
        if not self.mlp_norm_eps > 0:
            raise ValueError(f"mlp_norm_eps must be above 0, got {self.mlp_norm_eps}.")


def grid_positions(side: int, channels: int) -> Tensor:
    """Return sinusoidal position embeddings of a square grid (Peebles & Xie 2023, code).

    The first half of the channels encodes the column, the second half the row.
    Returns [side^2, channels], float32, in row-major order.
    """
    quarter = channels // 4
    frequency = 10_000 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # [side, quarter]
    along = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, channels / 2]
    rows, columns = along.repeat_interleave(side, dim=0), along.repeat(side, 1)
    return torch.cat([columns, rows], dim=1).float()


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x scaled and shifted.  x: [B, tokens, channels].  shift, scale: [B, channels]."""
    return x * (1 + scale[:, None]) + shift[:, None]


class SelfAttention(nn.Module):
    """Self-attention over all tokens: [B, tokens, channels] -> [B, tokens, channels]."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, heads, tokens, channels per head]
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class DiTBlock(nn.Module):
    """Attention and an MLP, whose shifts, scales and gates depend on the embedding and are initially 0 (adaLN-Zero)."""

    def __init__(
        self, channels: int, num_heads: int, *, mlp_ratio: float, dropout: float, mlp_norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm_attention = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.attention = SelfAttention(channels, num_heads)
        self.norm_mlp = nn.LayerNorm(channels, eps=mlp_norm_eps, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Dropout(dropout), nn.Linear(hidden, channels)
        )
        self.modulation = zero(nn.Linear(channels, 6 * channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(embedding)).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attention(modulated(self.norm_attention(x), shift_a, scale_a))
        result: Tensor = x + gate_m[:, None] * self.mlp(modulated(self.norm_mlp(x), shift_m, scale_m))
        return result


class PatchHead(nn.Module):
    """Output layer: tokens [B, side^2, channels] -> image [B, out_channels, H, W], initially 0 (Peebles & Xie 2023).

    norm: normalization of the tokens; the embedding scales and shifts its output.
    """

    def __init__(self, norm: nn.Module, channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.norm, self.patch_size = norm, patch_size
        self.modulation = zero(nn.Linear(channels, 2 * channels))
        self.out = nn.Linear(channels, out_channels * patch_size**2)
        zero(self.out)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # The output has the precision of the weights even under autocast, as in `UNet`.
        with torch.autocast(x.device.type, enabled=False):
            x, embedding = x.to(self.out.weight.dtype), embedding.to(self.out.weight.dtype)
            shift, scale = self.modulation(F.silu(embedding)).chunk(2, dim=1)
            x = self.out(modulated(self.norm(x), shift, scale)).mT  # [B, out_channels patch_size^2, side^2]
        side = round(x.shape[2] ** 0.5)
        return F.pixel_shuffle(x.reshape(*x.shape[:2], side, side), self.patch_size)


class DiT(Network):
    """A transformer over square patches of an image or of its latents (Peebles & Xie 2023, section 3.2).

    in_channels, out_channels, resolution, labels, num_augmentation_channels, condition_channels: see `Network`.
    patch_size: side of a patch in pixels.  channels: number of channels of a token.  depth: number of blocks.
    num_heads: number of attention heads.  mlp_ratio: ratio of hidden channels to channels in an MLP.
    dropout: dropout probability inside the MLPs.
    checkpointing: whether to recompute activations in the backward pass, as in `Stage`.
    variant: constants in which implementations differ; by default those of the paper's code.

    Raises ValueError unless patch_size divides resolution, and num_heads and 4 divide channels.

    >>> from diffusion_lab import Condition, DiT, Labels
    >>> network = DiT(4, 4, resolution=16, channels=64, depth=2, num_heads=4, labels=Labels(10))
    >>> network(torch.randn(2, 4, 16, 16), torch.tensor([0.0, 999.0]), Condition(torch.tensor([3, 7]))).shape
    torch.Size([2, 4, 16, 16])
    """

    mixes_labels = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        resolution: int,
        patch_size: int = 2,
        channels: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        labels: Labels | None = None,
        num_augmentation_channels: int = 0,
        condition_channels: int = 0,
        checkpointing: bool = False,
        variant: DiTVariant | None = None,
    ) -> None:
        super().__init__()
        require_tokens(resolution, patch_size, channels, num_heads)
        require_blocks(depth, mlp_ratio)
        self.resolution, self.in_channels, self.out_channels = resolution, in_channels, out_channels
        self.patch_size, self.checkpointing = patch_size, checkpointing
        self.num_augmentation_channels = num_augmentation_channels
        self.condition_channels = condition_channels
        self.labels = Labels.of(labels)
        self.variant = variant = variant or DiTVariant()
        self.patches = nn.Linear((in_channels + condition_channels) * patch_size**2, channels)
        self.register_buffer("positions", grid_positions(resolution // patch_size, channels), persistent=False)
        sinusoids = Sinusoids(variant.time_kind)
        self.time_embedding = TimeEmbedding(TIME_CHANNELS, channels, num_augmentation_channels, sinusoids)
        self.label_embedding = nn.Embedding(self.labels.num_rows, channels) if self.labels.num_classes else None
        self.blocks = nn.ModuleList(
            DiTBlock(channels, num_heads, mlp_ratio=mlp_ratio, dropout=dropout, mlp_norm_eps=variant.mlp_norm_eps)
            for _ in range(depth)
        )
        norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.head = PatchHead(norm, channels, out_channels, patch_size)
        self._initialize()

    @property
    def conventions(self) -> dict[str, Any]:
        return contracts.conventions(self.variant)

    def _initialize(self) -> None:
        """Initialize the weights as in the code of Peebles & Xie (2023). Weights that are 0 stay 0."""
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("modulation"):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.weight)
        nn.init.zeros_(self.patches.bias)
        for module in self.time_embedding.layers:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.weight, std=0.02)

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Network.forward`.

        Raises ValueError if x_t is not [B, in_channels, resolution, resolution], or if the condition lacks a part that
        the network requires or has a part that it does not accept.
        """
        require_image(x_t, self.in_channels, self.resolution)
        embedding = self.time_embedding(time, condition)  # [B, channels]
        require_label(condition.label, self.labels)
        if self.label_embedding is not None:
            embedding = embedding + embed_label(self.label_embedding, condition.label)
        x = with_condition_image(x_t, condition, self.condition_channels).to(self.patches.weight.dtype)
        x = self.patches(F.pixel_unshuffle(x, self.patch_size).flatten(2).mT) + self.positions  # [B, tokens, channels]
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, embedding, use_reentrant=False)
            else:
                x = block(x, embedding)
        output: Tensor = self.head(x, embedding)
        return output


def require_image(x_t: Tensor, channels: int, resolution: int) -> None:
    """Raise ValueError unless x_t is [B, channels, resolution, resolution]."""
    if x_t.shape[1:] != (channels, resolution, resolution):
        raise ValueError(f"x_t must be [B, {channels}, {resolution}, {resolution}], got {list(x_t.shape)}.")


def require_blocks(depth: int, mlp_ratio: float) -> None:
    """Raise ValueError for a transformer without blocks or without an MLP."""
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}.")
    if not mlp_ratio > 0:
        raise ValueError(f"mlp_ratio must be above 0, got {mlp_ratio}.")


def require_tokens(resolution: int, patch_size: int, channels: int, num_heads: int) -> None:
    """Raise ValueError unless patch_size divides resolution, and num_heads and 4 divide channels, which are above 0."""
    if patch_size < 1 or resolution % patch_size:
        raise ValueError(f"patch_size must divide resolution={resolution}, got {patch_size}.")
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"num_heads must divide channels={channels}, got {num_heads}.")
    if channels < 4 or channels % 4:
        raise ValueError(
            "channels must be at least 4 and divisible by 4 (sines and cosines of the row and the column of a patch), "
            f"got {channels}."
        )

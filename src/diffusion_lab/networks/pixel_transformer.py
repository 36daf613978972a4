"""A transformer over large patches of pixels, built from components that became standard after DiT.

The components are rotary positions (Su et al. 2024) along rows and columns, SwiGLU (Shazeer 2020), normalized queries
and keys (Dehghani et al. 2023), a bottleneck before the tokens for prediction=x_0 (Li & He 2025), and adaLN-Zero as in
DiT.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_lab.networks.blocks import zero
from diffusion_lab.networks.condition import Condition, Labels
from diffusion_lab.networks.dit import (
    TIME_CHANNELS,
    PatchHead,
    modulated,
    require_blocks,
    require_image,
    require_tokens,
)
from diffusion_lab.networks.embeddings import Sinusoids, TimeEmbedding, embed_label, require_label, with_condition_image
from diffusion_lab.networks.network import Network


def rotation(side: int, channels: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angle of each channel pair and position: [side^2, channels / 2], float32.

    Positions are in row-major order. The first half of the pairs rotates with the row, the second with the column.
    The angles are computed on each call, because buffers of the network are cast to the precision of the weights.
    """
    quarter = channels // 4
    frequency = 10_000 ** -(torch.arange(quarter, dtype=torch.float64, device=device) / quarter)
    angle = torch.arange(side, dtype=torch.float64, device=device)[:, None] * frequency  # [side, channels / 4]
    angles = torch.cat([angle.repeat_interleave(side, dim=0), angle.repeat(side, 1)], dim=1)
    return angles.cos().float(), angles.sin().float()


def rotated(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of adjacent channels.  x: [B, heads, tokens, channels].  by: cosine and sine, see `rotation`.

    Returns a tensor of the shape of x in float32, or in float64 if x is float64.
    """
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs.unbind(-1)
    cos, sin = by
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


class TransformerBlock(nn.Module):
    """Attention with rotated, normalized queries and keys, and a SwiGLU MLP; both modulated by adaLN-Zero."""

    def __init__(self, channels: int, num_heads: int, *, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        # The three matrices of SwiGLU have as many parameters as the two matrices of a plain MLP (Shazeer 2020).
        hidden = int(channels * mlp_ratio * 2 / 3)
        self.norm_attention, self.norm_mlp = nn.RMSNorm(channels, eps=1e-6), nn.RMSNorm(channels, eps=1e-6)
        self.norm_q = nn.RMSNorm(channels // num_heads, eps=1e-6)
        self.norm_k = nn.RMSNorm(channels // num_heads, eps=1e-6)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.gated, self.down = nn.Linear(channels, 2 * hidden), nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)
        self.modulation = zero(nn.Linear(channels, 6 * channels))

    def forward(self, x: Tensor, embedding: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(embedding)).chunk(6, dim=1)
        x = x + gate_a[:, None] * self._attention(modulated(self.norm_attention(x), shift_a, scale_a), rotation)
        gate, value = self.gated(modulated(self.norm_mlp(x), shift_m, scale_m)).chunk(2, dim=2)
        result: Tensor = x + gate_m[:, None] * self.down(self.dropout(F.silu(gate) * value))
        return result

    def _attention(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, heads, tokens, channels per head]
        precise = self.norm_q.weight.dtype  # also under autocast
        q, k = rotated(self.norm_q(q.to(precise)), rotation), rotated(self.norm_k(k.to(precise)), rotation)
        q, k = q.to(v.dtype), k.to(v.dtype)
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class PixelTransformer(Network):
    """A transformer over square patches of pixels; its sources are listed in the docstring of the module.

    bottleneck: channels of the linear map between a patch and its token.  All other arguments: see `DiT`.
    Raises the errors of `DiT`, and ValueError unless channels / num_heads is divisible by 4.

    >>> from diffusion_lab import Condition, PixelTransformer
    >>> network = PixelTransformer(3, 3, resolution=32, channels=64, depth=2, num_heads=4)
    >>> network(torch.randn(2, 3, 32, 32), torch.tensor([0.0, 999.0]), Condition()).shape
    torch.Size([2, 3, 32, 32])
    """

    mixes_labels = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        resolution: int,
        patch_size: int = 4,
        bottleneck: int = 64,
        channels: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        labels: Labels | None = None,
        num_augmentation_channels: int = 0,
        condition_channels: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require_tokens(resolution, patch_size, channels, num_heads)
        require_blocks(depth, mlp_ratio)
        if bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, got {bottleneck}.")
        if channels // num_heads % 4:
            raise ValueError(
                f"channels / num_heads must be divisible by 4 (channel pairs are rotated for the row and the column), "
                f"got {channels // num_heads}."
            )
        self.resolution, self.in_channels, self.out_channels = resolution, in_channels, out_channels
        self.patch_size, self.checkpointing = patch_size, checkpointing
        self.num_augmentation_channels = num_augmentation_channels
        self.condition_channels = condition_channels
        self.labels = Labels.of(labels)
        self.patches = nn.Sequential(
            nn.Linear((in_channels + condition_channels) * patch_size**2, bottleneck, bias=False),
            nn.Linear(bottleneck, channels),
        )
        self.head_channels = channels // num_heads
        self.time_embedding = TimeEmbedding(TIME_CHANNELS, channels, num_augmentation_channels, Sinusoids("adm"))
        self.label_embedding = nn.Embedding(self.labels.num_rows, channels) if self.labels.num_classes else None
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, num_heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.head = PatchHead(nn.RMSNorm(channels, eps=1e-6), channels, out_channels, patch_size)

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
        x = with_condition_image(x_t, condition, self.condition_channels).to(self.head.out.weight.dtype)
        x = self.patches(F.pixel_unshuffle(x, self.patch_size).flatten(2).mT)  # [B, tokens, channels]
        x = x.to(self.head.out.weight.dtype)  # the residual stream keeps its precision under autocast
        places = rotation(self.resolution // self.patch_size, self.head_channels, x.device)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, embedding, places, use_reentrant=False)
            else:
                x = block(x, embedding, places)
        output: Tensor = self.head(x, embedding)
        return output

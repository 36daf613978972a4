"""The transformer of facebookresearch/DiT as plain functions of a dict of tensors.

Written from the layout of the original code alone, without the networks of this package.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support.foreign_openai import Shapes, layer


@dataclass(frozen=True)
class DiTSizes:
    """Arguments of the original class."""

    input_size: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    num_classes: int = 1000
    learn_sigma: bool = True

    @property
    def made(self) -> int:
        return 8 if self.learn_sigma else 4

    def shapes(self) -> Shapes:
        width, patch = self.hidden_size, self.patch_size
        shapes = layer("x_embedder.proj", (width, 4, patch, patch)) | {
            "pos_embed": (1, (self.input_size // patch) ** 2, width),
            "y_embedder.embedding_table.weight": (self.num_classes + 1, width),
        }
        shapes |= layer("t_embedder.mlp.0", (width, 256)) | layer("t_embedder.mlp.2", (width, width))
        for i in range(self.depth):
            shapes |= layer(f"blocks.{i}.attn.qkv", (3 * width, width)) | layer(f"blocks.{i}.attn.proj", (width, width))
            shapes |= layer(f"blocks.{i}.mlp.fc1", (4 * width, width)) | layer(
                f"blocks.{i}.mlp.fc2", (width, 4 * width)
            )
            shapes |= layer(f"blocks.{i}.adaLN_modulation.1", (6 * width, width))
        shapes |= layer("final_layer.linear", (patch**2 * self.made, width))
        return shapes | layer("final_layer.adaLN_modulation.1", (2 * width, width))


def positions(side: int, width: int) -> Tensor:
    """The fixed positions: the first half of the channels encodes the column, the second half the row."""

    def encode(numbers: np.ndarray) -> np.ndarray:
        omega = 1.0 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
        angles = numbers.reshape(-1)[:, None] * omega[None]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    columns, rows = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    return torch.from_numpy(np.concatenate([encode(columns), encode(rows)], axis=1)).float()[None]


def with_positions(sizes: DiTSizes, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"pos_embed": positions(sizes.input_size // sizes.patch_size, sizes.hidden_size)}


def output(sizes: DiTSizes, w: dict[str, Tensor], x: Tensor, time: Tensor, label: Tensor) -> Tensor:
    """Output of the network for step indices `time`; the label num_classes means no class."""

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(h: Tensor) -> Tensor:
        return F.layer_norm(h, (width,), eps=1e-6)

    width, patch, heads = sizes.hidden_size, sizes.patch_size, sizes.num_heads
    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch).flatten(2).transpose(1, 2)
    h = h + w["pos_embed"]
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128)
    angles = time[:, None].float() * frequencies[None]
    c = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype))
    c = F.silu(linear("t_embedder.mlp.2", F.silu(c)) + w["y_embedder.embedding_table.weight"][label])
    for i in range(sizes.depth):
        parts = linear(f"blocks.{i}.adaLN_modulation.1", c)[:, None].chunk(6, dim=2)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        qkv = linear(f"blocks.{i}.attn.qkv", norm(h) * (1 + scale) + shift)
        q, k, v = qkv.reshape(*qkv.shape[:2], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5).softmax(dim=-1) @ v
        h = h + gate * linear(f"blocks.{i}.attn.proj", a.transpose(1, 2).flatten(2))
        y = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(h) * (1 + scale_mlp) + shift_mlp), approximate="tanh")
        h = h + gate_mlp * linear(f"blocks.{i}.mlp.fc2", y)
    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, dim=2)
    h = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    side = sizes.input_size // patch
    h = h.reshape(len(x), side, side, patch, patch, sizes.made)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), sizes.made, sizes.input_size, sizes.input_size)


PUBLISHED = {
    "DiT-XL-2-256x256.pt": (DiTSizes(32, 2, 1152, 28, 16), 675_129_632),
    "DiT-XL-2-512x512.pt": (DiTSizes(64, 2, 1152, 28, 16), None),
    "DiT-S-2.pt": (DiTSizes(32, 2, 384, 12, 6), 32_963_360),
    "DiT-B-2.pt": (DiTSizes(32, 2, 768, 12, 12), 130_512_416),
    "DiT-L-2.pt": (DiTSizes(32, 2, 1024, 24, 16), 458_102_816),
}
"""Name of a file -> its sizes, and the number of parameters that the original code counts, with the positions."""

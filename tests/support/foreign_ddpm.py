"""The network of Ho et al. (2020) in the layout of pytorch_diffusion and ddim, as plain functions of a dict of tensors.

Written from the layout of the original code alone, without the networks of this package.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from support.foreign_openai import Shapes, layer

EPS = 1e-6


@dataclass(frozen=True)
class DDPM:
    """Settings of the original config files."""

    resolution: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...] = (16,)
    out_ch: int = 3

    @property
    def sides(self) -> list[int]:
        return [self.resolution // 2**level for level in range(len(self.ch_mult))]

    def blocks(self) -> list[tuple[str, int, int, bool]]:
        """Start of the names, channels before and after, and attention of each block, except those of the middle."""
        found, width = list[tuple[str, int, int, bool]](), self.ch
        widths = [self.ch * multiplier for multiplier in self.ch_mult]
        skips = [self.ch]
        for level, made in enumerate(widths):
            for i in range(self.num_res_blocks):
                found.append((f"down.{level}.block.{i}", width, made, self.sides[level] in self.attn_resolutions))
                width = made
                skips.append(width)
            if level + 1 < len(widths):
                skips.append(width)
        for level in reversed(range(len(widths))):
            for i in range(self.num_res_blocks + 1):
                attends = self.sides[level] in self.attn_resolutions
                found.append((f"up.{level}.block.{i}", width + skips.pop(), widths[level], attends))
                width = widths[level]
        return found

    def shapes(self) -> Shapes:
        last = self.ch * self.ch_mult[-1]
        shapes = layer("temb.dense.0", (4 * self.ch, self.ch)) | layer("temb.dense.1", (4 * self.ch, 4 * self.ch))
        shapes |= layer("conv_in", (self.ch, 3, 3, 3))
        for prefix, taken, made, attends in self.blocks():
            shapes |= self.residual(prefix, taken, made)
            if attends:
                shapes |= self.attention(prefix.replace("block", "attn"), made)
        for level, multiplier in enumerate(self.ch_mult):
            width = self.ch * multiplier
            if level + 1 < len(self.ch_mult):
                shapes |= layer(f"down.{level}.downsample.conv", (width, width, 3, 3))
            if level:
                shapes |= layer(f"up.{level}.upsample.conv", (width, width, 3, 3))
        shapes |= self.residual("mid.block_1", last, last) | self.residual("mid.block_2", last, last)
        shapes |= self.attention("mid.attn_1", last)
        return shapes | layer("norm_out", (self.ch * self.ch_mult[0],)) | layer(
            "conv_out", (self.out_ch, self.ch * self.ch_mult[0], 3, 3)
        )  # fmt: skip

    def residual(self, prefix: str, taken: int, made: int) -> Shapes:
        shapes = layer(f"{prefix}.norm1", (taken,)) | layer(f"{prefix}.conv1", (made, taken, 3, 3))
        shapes |= layer(f"{prefix}.temb_proj", (made, 4 * self.ch)) | layer(f"{prefix}.norm2", (made,))
        shapes |= layer(f"{prefix}.conv2", (made, made, 3, 3))
        return shapes | (layer(f"{prefix}.nin_shortcut", (made, taken, 1, 1)) if taken != made else {})

    @staticmethod
    def attention(prefix: str, width: int) -> Shapes:
        shapes = layer(f"{prefix}.norm", (width,))
        for name in ("q", "k", "v", "proj_out"):
            shapes |= layer(f"{prefix}.{name}", (width, width, 1, 1))
        return shapes


def output(net: DDPM, w: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
    """Output of the network for step indices `time`."""

    def conv(name: str, h: Tensor, **options: int) -> Tensor:
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, w[f"{name}.weight"], w[f"{name}.bias"], EPS)

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    def residual(prefix: str, h: Tensor) -> Tensor:
        y = conv(f"{prefix}.conv1", F.silu(norm(f"{prefix}.norm1", h)), padding=1)
        y = y + linear(f"{prefix}.temb_proj", F.silu(temb))[:, :, None, None]
        y = conv(f"{prefix}.conv2", F.silu(norm(f"{prefix}.norm2", y)), padding=1)
        return y + (conv(f"{prefix}.nin_shortcut", h) if f"{prefix}.nin_shortcut.weight" in w else h)

    def attend(prefix: str, h: Tensor) -> Tensor:
        y = norm(f"{prefix}.norm", h)
        q, k, v = (conv(f"{prefix}.{name}", y).flatten(2) for name in "qkv")
        weights = (torch.einsum("bci,bcj->bij", q, k) * h.shape[1] ** -0.5).softmax(dim=2)
        return h + conv(f"{prefix}.proj_out", torch.einsum("bij,bcj->bci", weights, v).reshape(h.shape))

    half = net.ch // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000) / (half - 1)))
    angles = time.float()[:, None] * frequencies[None]
    temb = torch.cat([angles.sin(), angles.cos()], dim=1).to(w["conv_in.weight"].dtype)
    temb = linear("temb.dense.1", F.silu(linear("temb.dense.0", temb)))
    levels = len(net.ch_mult)
    skips = [conv("conv_in", x, padding=1)]
    for level in range(levels):
        for i in range(net.num_res_blocks):
            h = residual(f"down.{level}.block.{i}", skips[-1])
            skips.append(attend(f"down.{level}.attn.{i}", h) if f"down.{level}.attn.{i}.q.weight" in w else h)
        if level + 1 < levels:
            skips.append(conv(f"down.{level}.downsample.conv", F.pad(skips[-1], (0, 1, 0, 1)), stride=2))
    h = residual("mid.block_2", attend("mid.attn_1", residual("mid.block_1", skips[-1])))
    for level in reversed(range(levels)):
        for i in range(net.num_res_blocks + 1):
            h = residual(f"up.{level}.block.{i}", torch.cat([h, skips.pop()], dim=1))
            h = attend(f"up.{level}.attn.{i}", h) if f"up.{level}.attn.{i}.q.weight" in w else h
        if level:
            h = conv(f"up.{level}.upsample.conv", F.interpolate(h, scale_factor=2, mode="nearest"), padding=1)
    return conv("conv_out", F.silu(norm("norm_out", h)), padding=1)


PUBLISHED = {
    "ema_diffusion_cifar10_model/model-790000.ckpt": (DDPM(32, 128, (1, 2, 2, 2), 2), 35_746_307, "cifar10"),
    "ema_diffusion_lsun_church_model/model-4432000.ckpt": (
        DDPM(256, 128, (1, 1, 2, 2, 4, 4), 2), 113_673_219, "lsun_church"
    ),
    "diffusion_lsun_cat_model/model-1761000.ckpt": (DDPM(256, 128, (1, 1, 2, 2, 4, 4), 2), 113_673_219, "lsun_cat"),
    "celebahq/ckpt.pth": (DDPM(256, 128, (1, 1, 2, 2, 4, 4), 2), 113_673_219, "celeba_hq"),
    "celeba/ckpt.pth": (DDPM(64, 128, (1, 2, 2, 2, 4), 2), None, "celeba"),
}  # fmt: skip
"""Path of a published file -> its settings, its number of parameters if it is published, and its data set."""

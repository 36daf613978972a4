"""The networks of openai/improved-diffusion and guided-diffusion as plain functions of a dict of tensors.

Written from the layout of the original code alone, without the networks of this package: names, shapes and the forward
pass, for small and for published sizes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


class Module(NamedTuple):
    """A module in a stage: its kind, the start of its names, its channels, and whether it changes the resolution."""

    kind: str
    prefix: str
    taken: int
    made: int
    resize: str = ""


@dataclass(frozen=True)
class OpenAI:
    """Flags of the original code.  heads: number of heads; head_channels counts more if it is given."""

    resolution: int
    channels: int
    multipliers: tuple[float, ...]
    depth: int
    attention: tuple[int, ...]
    heads: int = 4
    head_channels: int | None = None
    new_order: bool = False
    scale_shift: bool = True
    updown: bool = True
    classes: int = 0
    taken: int = 3
    made: int = 6
    time_scale: float = 1.0

    @property
    def embedded(self) -> int:
        return 4 * self.channels

    def num_heads(self, channels: int) -> int:
        return channels // self.head_channels if self.head_channels else self.heads

    def stages(self) -> tuple[list[list[Module]], list[Module], list[list[Module]]]:
        """Modules of input_blocks (without the first convolution), of middle_block and of output_blocks."""
        width = int(self.multipliers[0] * self.channels)
        inputs, skips, side = list[list[Module]](), [width], self.resolution
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(self.depth):
                made = int(multiplier * self.channels)
                inputs.append(self._stage(f"input_blocks.{len(inputs) + 1}", width, made, side))
                width = made
                skips.append(width)
            if level + 1 < len(self.multipliers):
                inputs.append([self._resize(f"input_blocks.{len(inputs) + 1}.0", width, "down")])
                skips.append(width)
                side //= 2
        kinds = ("residual", "attention", "residual")
        middle = [Module(kind, f"middle_block.{i}", width, width) for i, kind in enumerate(kinds)]
        outputs = list[list[Module]]()
        for level in reversed(range(len(self.multipliers))):
            for k in range(self.depth + 1):
                made, start = int(self.channels * self.multipliers[level]), f"output_blocks.{len(outputs)}"
                outputs.append(self._stage(start, width + skips.pop(), made, side))
                width = made
                if level and k == self.depth:
                    outputs[-1].append(self._resize(f"{start}.{len(outputs[-1])}", width, "up"))
                    side *= 2
        return inputs, middle, outputs

    def _stage(self, start: str, taken: int, made: int, side: int) -> list[Module]:
        attention = [Module("attention", f"{start}.1", made, made)] if side in self.attention else []
        return [Module("residual", f"{start}.0", taken, made), *attention]

    def _resize(self, prefix: str, width: int, resize: str) -> Module:
        return Module("residual" if self.updown else resize, prefix, width, width, resize)

    def shapes(self) -> Shapes:
        """Names and shapes of the U-Net's state_dict."""
        inputs, middle, outputs = self.stages()
        shapes = self.ends() | of_modules(self, [m for stage in (*inputs, middle, *outputs) for m in stage])
        width = int(self.channels * self.multipliers[0])
        shapes |= layer("out.0", (width,)) | layer("out.2", (self.made, width, 3, 3))
        return shapes | ({"label_emb.weight": (self.classes, self.embedded)} if self.classes else {})

    def ends(self) -> Shapes:
        width, embedded = int(self.channels * self.multipliers[0]), self.embedded
        first = layer("time_embed.0", (embedded, self.channels)) | layer("time_embed.2", (embedded, embedded))
        return first | layer("input_blocks.0.0", (width, self.taken, 3, 3))

    def classifier_shapes(self) -> Shapes:
        """Names and shapes of the classifier's state_dict, with attention pooling."""
        inputs, middle, _ = self.stages()
        width, side = middle[0].made, self.resolution // 2 ** (len(self.multipliers) - 1)
        shapes = self.ends() | of_modules(self, [m for stage in (*inputs, middle) for m in stage])
        shapes |= layer("out.0", (width,)) | {"out.2.positional_embedding": (width, side**2 + 1)}
        return shapes | layer("out.2.qkv_proj", (3 * width, width, 1)) | layer("out.2.c_proj", (self.made, width, 1))


def layer(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def of_modules(flags: OpenAI, modules: list[Module]) -> Shapes:
    shapes: Shapes = {}
    for kind, prefix, taken, made, _ in modules:
        if kind == "residual":
            shapes |= layer(f"{prefix}.in_layers.0", (taken,)) | layer(f"{prefix}.in_layers.2", (made, taken, 3, 3))
            shapes |= layer(f"{prefix}.emb_layers.1", (made * (1 + flags.scale_shift), flags.embedded))
            shapes |= layer(f"{prefix}.out_layers.0", (made,)) | layer(f"{prefix}.out_layers.3", (made, made, 3, 3))
            if taken != made:
                shapes |= layer(f"{prefix}.skip_connection", (made, taken, 1, 1))
        elif kind == "attention":
            shapes |= layer(f"{prefix}.norm", (made,)) | layer(f"{prefix}.qkv", (3 * made, made, 1))
            shapes |= layer(f"{prefix}.proj_out", (made, made, 1))
        else:
            shapes |= layer(f"{prefix}.{'op' if kind == 'down' else 'conv'}", (made, made, 3, 3))
    return shapes


def random_tensors(shapes: Shapes, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of about unit gain, and scales of normalizations near 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 1:
            return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        return values / math.sqrt(math.prod(shape[1:]))

    return {name: draw(name, shape).to(dtype) for name, shape in shapes.items()}


def meta_tensors(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def unet(flags: OpenAI, w: dict[str, Tensor], x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
    """Output of the U-Net for step indices `time`, or scaled ones in improved-diffusion."""
    inputs, middle, outputs = flags.stages()
    embedding = embed(flags, w, time)
    if label is not None:
        embedding = embedding + w["label_emb.weight"][label]
    h = F.conv2d(x, w["input_blocks.0.0.weight"], w["input_blocks.0.0.bias"], padding=1)
    skips = [h]
    for stage in inputs:
        h = run(flags, w, stage, h, embedding)
        skips.append(h)
    h = run(flags, w, middle, h, embedding)
    for stage in outputs:
        h = run(flags, w, stage, torch.cat([h, skips.pop()], dim=1), embedding)
    h = F.silu(norm(w, "out.0", h))
    return F.conv2d(h, w["out.2.weight"], w["out.2.bias"], padding=1)


def classifier(flags: OpenAI, w: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
    """Logits of the classifier."""
    inputs, middle, _ = flags.stages()
    embedding = embed(flags, w, time)
    h = F.conv2d(x, w["input_blocks.0.0.weight"], w["input_blocks.0.0.bias"], padding=1)
    for stage in (*inputs, middle):
        h = run(flags, w, stage, h, embedding)
    h = F.silu(norm(w, "out.0", h)).flatten(2)  # [B, C, positions]
    h = torch.cat([h.mean(dim=2, keepdim=True), h], dim=2) + w["out.2.positional_embedding"]
    qkv = F.conv1d(h, w["out.2.qkv_proj.weight"], w["out.2.qkv_proj.bias"])
    h = attend(qkv, flags.num_heads(h.shape[1]), new_order=True)
    return F.conv1d(h, w["out.2.c_proj.weight"], w["out.2.c_proj.bias"])[:, :, 0]


def embed(flags: OpenAI, w: dict[str, Tensor], time: Tensor) -> Tensor:
    half = flags.channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
    angles = (flags.time_scale * time.float())[:, None] * frequencies[None]
    h = torch.cat([angles.cos(), angles.sin()], dim=1).to(w["time_embed.0.weight"].dtype)
    h = F.silu(F.linear(h, w["time_embed.0.weight"], w["time_embed.0.bias"]))
    return F.linear(h, w["time_embed.2.weight"], w["time_embed.2.bias"])


def norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def run(flags: OpenAI, w: dict[str, Tensor], stage: list[Module], h: Tensor, embedding: Tensor) -> Tensor:
    for module in stage:
        if module.kind == "residual":
            h = residual(flags, w, module, h, embedding)
        elif module.kind == "attention":
            p, shape = module.prefix, h.shape
            qkv = F.conv1d(norm(w, f"{p}.norm", h).flatten(2), w[f"{p}.qkv.weight"], w[f"{p}.qkv.bias"])
            a = attend(qkv, flags.num_heads(shape[1]), new_order=flags.new_order)
            h = h + F.conv1d(a, w[f"{p}.proj_out.weight"], w[f"{p}.proj_out.bias"]).reshape(shape)
        elif module.kind == "down":
            h = F.conv2d(h, w[f"{module.prefix}.op.weight"], w[f"{module.prefix}.op.bias"], stride=2, padding=1)
        else:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
            h = F.conv2d(h, w[f"{module.prefix}.conv.weight"], w[f"{module.prefix}.conv.bias"], padding=1)
    return h


def residual(flags: OpenAI, w: dict[str, Tensor], module: Module, x: Tensor, embedding: Tensor) -> Tensor:
    p = module.prefix
    resized: Callable[[Tensor], Tensor] = {
        "": lambda t: t,
        "down": lambda t: F.avg_pool2d(t, 2, 2),
        "up": lambda t: F.interpolate(t, scale_factor=2, mode="nearest"),
    }[module.resize]
    h = resized(F.silu(norm(w, f"{p}.in_layers.0", x)))
    h = F.conv2d(h, w[f"{p}.in_layers.2.weight"], w[f"{p}.in_layers.2.bias"], padding=1)
    e = F.linear(F.silu(embedding), w[f"{p}.emb_layers.1.weight"], w[f"{p}.emb_layers.1.bias"])[:, :, None, None]
    if flags.scale_shift:
        scale, shift = e.chunk(2, dim=1)
        h = norm(w, f"{p}.out_layers.0", h) * (1 + scale) + shift
    else:
        h = norm(w, f"{p}.out_layers.0", h + e)
    h = F.conv2d(F.silu(h), w[f"{p}.out_layers.3.weight"], w[f"{p}.out_layers.3.bias"], padding=1)
    x = resized(x)
    if f"{p}.skip_connection.weight" in w:
        x = F.conv2d(x, w[f"{p}.skip_connection.weight"], w[f"{p}.skip_connection.bias"])
    return x + h


def attend(qkv: Tensor, heads: int, *, new_order: bool) -> Tensor:
    """Attention over positions.  qkv: [B, 3 C, positions].  Returns [B, C, positions]."""
    batch, width, positions = qkv.shape
    channels = width // (3 * heads)
    if new_order:
        q, k, v = (part.reshape(batch * heads, channels, positions) for part in qkv.chunk(3, dim=1))
    else:
        q, k, v = qkv.reshape(batch * heads, 3 * channels, positions).chunk(3, dim=1)
    scale = channels**-0.25
    weights = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
    return torch.einsum("bts,bcs->bct", weights, v).reshape(batch, -1, positions)


PUBLISHED: dict[str, tuple[OpenAI, int]] = {
    "64x64_diffusion.pt": (
        OpenAI(64, 192, (1, 2, 3, 4), 3, (32, 16, 8), head_channels=64, new_order=True, classes=1000), 295_904_454
    ),
    "128x128_diffusion.pt": (OpenAI(128, 256, (1, 1, 2, 3, 4), 2, (32, 16, 8), classes=1000), 421_529_606),
    "256x256_diffusion.pt": (
        OpenAI(256, 256, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), head_channels=64, classes=1000), 553_838_086
    ),
    "256x256_diffusion_uncond.pt": (
        OpenAI(256, 256, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), head_channels=64), 552_814_086
    ),
    "512x512_diffusion.pt": (
        OpenAI(512, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (32, 16, 8), head_channels=64, classes=1000), 558_997_638
    ),
    "64_256_upsampler.pt": (
        OpenAI(256, 192, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), classes=1000, taken=6), 311_795_910
    ),
    "cifar10_uncond_50M_500K.pt": (
        OpenAI(32, 128, (1, 2, 2, 2), 3, (16, 8), updown=False, time_scale=0.25), 52_546_438
    ),
    "imagenet64_uncond_100M_1500K.pt": (
        OpenAI(64, 128, (1, 2, 3, 4), 3, (16, 8), updown=False, time_scale=0.25), 121_063_942
    ),
}  # fmt: skip
"""Name of a published file -> the flags of its README, and its number of parameters."""

CLASSIFIERS: dict[str, tuple[OpenAI, int]] = {
    "64x64_classifier.pt": (OpenAI(64, 128, (1, 2, 3, 4), 4, (32, 16, 8), head_channels=64, made=1000), 65_438_568),
    "128x128_classifier.pt": (
        OpenAI(128, 128, (1, 1, 2, 3, 4), 2, (32, 16, 8), head_channels=64, made=1000), 42_568_040
    ),
    "256x256_classifier.pt": (
        OpenAI(256, 128, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), head_channels=64, made=1000), 54_096_360
    ),
}  # fmt: skip


def small_unets() -> Iterator[tuple[str, OpenAI]]:
    """Small networks that together have all options of the layout."""
    base = OpenAI(16, 32, (1, 2), 1, (8,), heads=2, classes=5)
    yield "adm with the legacy order", base
    yield "adm with the new order", OpenAI(16, 32, (1, 2), 1, (16, 8), head_channels=16, new_order=True, classes=5)
    yield "adm at 512 with half a width", OpenAI(16, 64, (0.5, 1, 1), 1, (4,), heads=4, made=3)
    yield "improved ddpm", OpenAI(16, 32, (1, 2), 2, (8,), heads=4, updown=False, time_scale=0.25)
    yield "improved ddpm on LSUN", OpenAI(16, 32, (1, 1, 2), 1, (4,), heads=1, updown=False, scale_shift=False)

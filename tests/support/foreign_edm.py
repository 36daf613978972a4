"""The networks of NVlabs/edm as plain functions of a dict of tensors, and .pkl files as that code writes them.

Written from the layout of the original code alone, without the networks of this package. The pickles contain the names
and calls of the original ones, through modules that exist only while a file is written.
"""

import io
import math
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.foreign_openai import Shapes


class Block(NamedTuple):
    """A block: its name in enc or dec, its channels, its attention, and whether it changes the resolution."""

    name: str
    taken: int
    made: int
    attends: bool = False
    resize: str = ""


@dataclass(frozen=True)
class EDM:
    """Arguments of SongUNet (DDPM++) or DhariwalUNet (ADM).  label_dim, augment_dim: 0 for none."""

    resolution: int
    channels: int
    mults: tuple[int, ...]
    num_blocks: int
    attention: tuple[int, ...]
    is_song: bool = True
    label_dim: int = 0
    augment_dim: int = 0
    label_dropout: float = 0.0

    @property
    def embedded(self) -> int:
        return 4 * self.channels

    @property
    def eps(self) -> float:
        return 1e-6 if self.is_song else 1e-5

    def heads(self, channels: int) -> int:
        return 1 if self.is_song else channels // 64

    def encoder(self) -> list[Block]:
        blocks, width = [Block(f"enc.{self.resolution}x{self.resolution}_conv", 3, self._stem)], self._stem
        for level, mult in enumerate(self.mults):
            side = self.resolution >> level
            if level:
                blocks.append(Block(f"enc.{side}x{side}_down", width, width, resize="down"))
            for i in range(self.num_blocks):
                made = self.channels * mult
                blocks.append(Block(f"enc.{side}x{side}_block{i}", width, made, side in self.attention))
                width = made
        return blocks

    @property
    def _stem(self) -> int:
        return self.channels if self.is_song else self.channels * self.mults[0]

    def decoder(self) -> list[Block]:
        skips, blocks = [block.made for block in self.encoder()], list[Block]()
        width = skips[-1]
        for level in reversed(range(len(self.mults))):
            side = self.resolution >> level
            if level == len(self.mults) - 1:
                blocks += [Block(f"dec.{side}x{side}_in0", width, width, True)]
                blocks += [Block(f"dec.{side}x{side}_in1", width, width)]
            else:
                blocks.append(Block(f"dec.{side}x{side}_up", width, width, resize="up"))
            for i in range(self.num_blocks + 1):
                made = self.channels * self.mults[level]
                attends = side in self.attention and (i == self.num_blocks or not self.is_song)
                blocks.append(Block(f"dec.{side}x{side}_block{i}", width + skips.pop(), made, attends))
                width = made
        return blocks

    @property
    def last(self) -> tuple[str, str]:
        """Names of the last normalization and of the last convolution."""
        start = f"dec.{self.resolution}x{self.resolution}_aux" if self.is_song else "out"
        return f"{start}_norm", f"{start}_conv"

    def shapes(self) -> Shapes:
        first, *blocks = self.encoder()
        shapes = layer(first.name, first.made, 3, 3)
        shapes |= layer("map_layer0", self.embedded, self.channels) | layer("map_layer1", self.embedded, self.embedded)
        if self.label_dim and self.is_song:
            shapes |= layer("map_label", self.channels, self.label_dim)
        elif self.label_dim:
            shapes |= {"map_label.weight": (self.embedded, self.label_dim)}
        if self.augment_dim:
            shapes |= {"map_augment.weight": (self.channels, self.augment_dim)}
        for block in (*blocks, *self.decoder()):
            shapes |= self._block(block)
        width = self.channels * self.mults[0]
        return shapes | layer(self.last[0], width) | layer(self.last[1], 3, width, 3)

    def _block(self, block: Block) -> Shapes:
        p, taken, made = block.name, block.taken, block.made
        shapes = layer(f"{p}.norm0", taken) | layer(f"{p}.conv0", made, taken, 3)
        shapes |= layer(f"{p}.affine", made * (1 if self.is_song else 2), self.embedded)
        shapes |= layer(f"{p}.norm1", made) | layer(f"{p}.conv1", made, made, 3)
        if block.resize:
            shapes |= {f"{p}.conv0.resample_filter": (1, 1, 2, 2), f"{p}.skip.resample_filter": (1, 1, 2, 2)}
        if taken != made or (block.resize and self.is_song):
            shapes |= layer(f"{p}.skip", made, taken, 1)
        if block.attends:
            shapes |= (
                layer(f"{p}.norm2", made) | layer(f"{p}.qkv", 3 * made, made, 1) | layer(f"{p}.proj", made, made, 1)
            )
        return shapes


def layer(name: str, made: int, taken: int | None = None, kernel: int | None = None) -> Shapes:
    shape = (made,) if taken is None else (made, taken) if kernel is None else (made, taken, kernel, kernel)
    return {f"{name}.weight": shape, f"{name}.bias": (made,)}


def with_filters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the filters that average 2 x 2 pixels."""
    mean = torch.full((1, 1, 2, 2), 0.25)
    return {name: mean if name.endswith("filter") else tensor for name, tensor in tensors.items()}


def output(net: EDM, w: dict[str, Tensor], x: Tensor, time: Tensor, label: Tensor | None, augment: Tensor) -> Tensor:
    """Output of the inner network (without the preconditioning), for one-hot labels of `label`."""

    def conv(name: str, h: Tensor, padding: int = 0) -> Tensor:
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, w[f"{name}.weight"], w[f"{name}.bias"], net.eps)

    def resized(h: Tensor, resize: str) -> Tensor:
        if resize == "down":
            return F.avg_pool2d(h, 2)
        return F.interpolate(h, scale_factor=2, mode="nearest") if resize else h

    def block(b: Block, h: Tensor) -> Tensor:
        p, gain = b.name, math.sqrt(0.5) if net.is_song else 1.0
        y = conv(f"{p}.conv0", resized(F.silu(norm(f"{p}.norm0", h)), b.resize), 1)
        shift = linear(f"{p}.affine", embedding)[:, :, None, None]
        if net.is_song:
            y = F.silu(norm(f"{p}.norm1", y + shift))
        else:
            scale, shift = shift.chunk(2, dim=1)
            y = F.silu(shift + norm(f"{p}.norm1", y) * (scale + 1))
        h = resized(h, b.resize)
        h = (conv(f"{p}.conv1", y, 1) + (conv(f"{p}.skip", h) if f"{p}.skip.weight" in w else h)) * gain
        if b.attends:
            heads = net.heads(b.made)
            qkv = conv(f"{p}.qkv", norm(f"{p}.norm2", h)).reshape(len(h) * heads, b.made // heads, 3, -1)
            q, k, v = qkv.unbind(2)
            weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1])).softmax(dim=2)
            h = (conv(f"{p}.proj", torch.einsum("nqk,nck->ncq", weights, v).reshape(h.shape)) + h) * gain
        return h

    embedding = embed(net, w, time, label, augment)
    first, *blocks = net.encoder()
    skips = [conv(first.name, x, 1)]
    for b in blocks:
        skips.append(block(b, skips[-1]))
    h = skips[-1]
    for b in net.decoder():
        h = block(b, h if h.shape[1] == b.taken else torch.cat([h, skips.pop()], dim=1))
    return conv(net.last[1], F.silu(norm(net.last[0], h)), 1)


def embed(net: EDM, w: dict[str, Tensor], time: Tensor, label: Tensor | None, augment: Tensor) -> Tensor:
    half = net.channels // 2
    exponent = torch.arange(half, dtype=torch.float32) / (half - 1 if net.is_song else half)
    angles = torch.outer(time, ((1 / 10_000) ** exponent).to(time.dtype))
    parts = [angles.sin(), angles.cos()] if net.is_song else [angles.cos(), angles.sin()]
    h = torch.cat(parts, dim=1).to(w["map_layer0.weight"].dtype)
    one_hot = None if label is None else torch.eye(net.label_dim, dtype=h.dtype)[label]
    if net.is_song and one_hot is not None:
        h = h + F.linear(one_hot * math.sqrt(net.label_dim), w["map_label.weight"], w["map_label.bias"])
    if net.augment_dim:
        h = h + F.linear(augment.to(h.dtype), w["map_augment.weight"])
    h = F.linear(F.silu(F.linear(h, w["map_layer0.weight"], w["map_layer0.bias"])), w["map_layer1.weight"])
    h = h + w["map_layer1.bias"]
    if not net.is_song and one_hot is not None:
        h = h + F.linear(one_hot, w["map_label.weight"])
    return F.silu(h)


# Writing of .pkl files


class Persistent:
    """An object that is pickled as `torch_utils.persistence` does: its class name, source code and attributes."""

    def __init__(self, kind: str, **attributes: Any) -> None:
        self.kind, self.attributes = kind, attributes

    def __reduce__(self) -> Any:
        source = "raise SystemExit('the source code in the pickle has been run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.kind, "state": self.attributes}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def module(kind: str, tensors: dict[str, Tensor], children: dict[str, Any], **attributes: Any) -> Any:
    """A module with the attributes of torch.nn.Module; torch.nn.ModuleDict is pickled as itself."""
    buffers = OrderedDict((k, v) for k, v in tensors.items() if k.endswith("filter"))
    parameters = OrderedDict((k, nn.Parameter(v)) for k, v in tensors.items() if k not in buffers)
    state = {
        "training": False, "_parameters": parameters, "_buffers": buffers, "_non_persistent_buffers_set": set(),
        "_modules": OrderedDict(children), **attributes,
    }  # fmt: skip
    if kind == "ModuleDict":
        made = nn.ModuleDict()
        made.__dict__.update(state)
        return made
    return Persistent(kind, **state)


def tree(net: EDM, tensors: dict[str, Tensor], **others: Any) -> Any:
    """The modules of the inner network. others: attributes of all blocks that replace their own ones."""
    block = {"skip_scale": np.sqrt(0.5) if net.is_song else 1, "adaptive_scale": not net.is_song, "dropout": 0.1}

    def build(prefix: str, kind: str) -> Any:
        inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        own = {k: v for k, v in inside.items() if "." not in k}
        names = list(dict.fromkeys(k.partition(".")[0] for k in inside if "." in k))
        children = {name: build(f"{prefix}{name}.", kind_of(prefix, name, inside)) for name in names}
        extra: dict[str, Any] = {}
        if kind == "UNetBlock":
            made = len(inside["conv1.bias"])
            extra = block | {"num_heads": net.heads(made) if "qkv.weight" in inside else 0} | others
        if kind == "GroupNorm":
            extra = {"num_groups": 32, "eps": net.eps}
        if not prefix:
            noise = Persistent("PositionalEmbedding", num_channels=net.channels)
            children, extra = {"map_noise": noise, **children}, {"label_dropout": net.label_dropout}
        return module(kind, own, children, **extra)

    return build("", "SongUNet" if net.is_song else "DhariwalUNet")


def kind_of(prefix: str, name: str, inside: dict[str, Tensor]) -> str:
    if not prefix and name in ("enc", "dec"):
        return "ModuleDict"
    if f"{name}.conv0.weight" in inside:
        return "UNetBlock"
    if "norm" in name:
        return "GroupNorm"
    return "Linear" if name in ("affine",) or name.startswith("map") else "Conv2d"


def preconditioned(net: EDM, model: Any, kind: str = "EDMPrecond") -> Any:
    settings = {"EDMPrecond": {"sigma_data": 0.5}, "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}}
    return module(
        kind, {}, {"model": model}, img_resolution=net.resolution, img_channels=3, label_dim=net.label_dim,
        use_fp16=False, **settings.get(kind, {}),
    )  # fmt: skip


class EasyDict(dict[str, Any]):
    """The dict of the original code."""


@contextmanager
def original_modules() -> Iterator[None]:
    """The modules that the pickles name, while they are written."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the original code must not be called")

    names: dict[str, dict[str, Any]] = {
        "torch_utils": {}, "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib": {}, "dnnlib.util": {"EasyDict": EasyDict},
    }  # fmt: skip
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    before, EasyDict.__module__ = EasyDict.__module__, "dnnlib.util"
    for name, content in names.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(content)
    try:
        yield
    finally:
        EasyDict.__module__ = before
        for name in names:
            del sys.modules[name]


def pickled(network: Any, protocol: int = 4) -> bytes:
    """The content of a .pkl file with a network under the key ema."""
    content = {"ema": network, "loss_fn": Persistent("EDMLoss", P_mean=-1.2), "dataset_kwargs": EasyDict(path="x")}
    with original_modules():
        file = io.BytesIO()
        pickle.dump(content, file, protocol=protocol)
        return file.getvalue()


def write(net: EDM, tensors: dict[str, Tensor], file: Path, kind: str = "EDMPrecond", protocol: int = 4) -> Path:
    file.write_bytes(pickled(preconditioned(net, tree(net, tensors), kind), protocol))
    return file

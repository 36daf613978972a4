"""U-Nets of Ho et al. (2020) in the layout of pesser/pytorch_diffusion and ermongroup/ddim (format ddpm).

Names: `down.L.block.I`, `down.L.attn.I`, `mid` and `up.L` are the blocks of level L. Queries, keys and values are
separate layers. Group normalizations add 1e-6, the sines are first, and the network receives the step index. The file
does not contain the resolution: attention is at 16 x 16 in all published networks.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop.attention import as_convolution
from diffusion_lab.interop.imported import Imported, Options
from diffusion_lab.interop.openai_unet import multipliers
from diffusion_lab.interop.run_overrides import data_overrides, label_overrides, variance_overrides, without_given
from diffusion_lab.interop.tensors import ForeignTensors, converted
from diffusion_lab.interop.unet_layout import Block, Names, UNetLayout, layer, unet_plan

RESIDUAL: Names = {
    "norm_in": ("norm1",),
    "conv_in": ("conv1",),
    "embedding": ("temb_proj",),
    "norm_out": ("norm2",),
    "conv_out": ("conv2",),
    "skip": ("nin_shortcut",),
}
NAMES: dict[str, Names] = {
    "residual": RESIDUAL,
    "attention": {"norm": ("norm",), "qkv": ("q", "k", "v"), "out": ("proj_out",)},
    "down": {"conv": ("conv",)},
    "up": {"conv": ("conv",)},
}
"""Names of the layers of each kind of block."""

ATTENTION_RESOLUTION = 16

SETS = {
    "cifar10": ("cifar10", "fixed_large"),
    "church": ("lsun_church", "fixed_small"),
    "bedroom": ("lsun_bedroom", "fixed_small"),
    "cat": ("lsun_cat", "fixed_small"),
    "celebahq": ("celeba_hq", "fixed_small"),
    "celeba": ("celeba", "fixed_large"),
}
"""Word in the path of a published file -> its data set, and the variance of its reverse process."""


def recognizes(names: set[str]) -> bool:
    """Return whether a file with these tensors has this layout."""
    return {"temb.dense.0.weight", "conv_in.weight"} <= names


def read(tensors: ForeignTensors, options: Options) -> Imported:
    """Return the network of a file.

    Raises UserError if the file has other tensors, or if it needs settings that are not given.
    """
    depths = _depths(tensors)
    layout = _layout(tensors, depths)
    data, variance = _set(tensors.file)
    settings = _settings(tensors, depths, options, dropout=0.1 if data == "cifar10" else 0.0)
    plan = unet_plan(layout, NAMES, tensors.__contains__, lambda prefix: _joined)
    plan |= layer("time_embedding.layers.0", "temb.dense.0") | layer("time_embedding.layers.2", "temb.dense.1")
    for name in ("conv_in", "norm_out", "conv_out"):
        plan |= layer(name, name)
    weights = converted(plan, tensors, settings)
    channels = settings["in_channels"]
    overrides = data_overrides(data, resolution=settings["resolution"], channels=channels, num_classes=0)
    overrides += ["schedule=linear", "schedule.num_timesteps=1000", *label_overrides(0, 0.0)]
    overrides += variance_overrides(learned=settings["out_channels"] > channels, fixed=variance)
    overrides += ["sampler=ancestral", "ema=constant"]
    found = re.search(r"model-(\d{1,9})\.ckpt$", tensors.file.name)
    conventions = {"norm_eps": 1e-6, "sinusoids": "sines first", "time": "step index", "null_class": None}
    given = without_given(overrides, options.given)
    return Imported("train", settings, weights, given, conventions, int(found[1]) if found else 0)


def _joined(*tensors: Tensor) -> Tensor:
    """Return the rows of the queries, keys and values of the single head in one layer."""
    return as_convolution(torch.cat(tensors))


def _depths(tensors: ForeignTensors) -> list[int]:
    """Return the number of residual blocks of each level of the encoder.  Raises UserError if a level is missing."""
    found: dict[int, int] = {}
    for name in tensors:
        if match := re.fullmatch(r"down\.(\d{1,2})\.block\.(\d{1,2})\.conv1\.weight", name):
            found[int(match[1])] = max(found.get(int(match[1]), 0), int(match[2]) + 1)
    missing = [f"down.{level}.block.0" for level in range(max(found, default=0) + 1) if level not in found]
    if missing:
        tensors.refuse("has no", missing)
    return [found[level] for level in range(len(found))]


def _layout(tensors: ForeignTensors, depths: list[int]) -> UNetLayout:
    down, up = list[list[Block]](), list[list[Block]]()
    for level, depth in enumerate(depths):
        down += _level(tensors, f"down.{level}", depth)
        if level < len(depths) - 1:
            down.append([("down", f"down.{level}.downsample")])
    for level in reversed(range(len(depths))):
        up += _level(tensors, f"up.{level}", depths[level] + 1)
        if level > 0:
            up[-1].append(("up", f"up.{level}.upsample"))
    middle = [("residual", "mid.block_1"), ("attention", "mid.attn_1"), ("residual", "mid.block_2")]
    return UNetLayout(down, middle, up)


def _level(tensors: ForeignTensors, prefix: str, depth: int) -> list[list[Block]]:
    """Return the stages of a level, each of which is a residual block and, if the level has attention, attention."""
    attends = f"{prefix}.attn.0.q.weight" in tensors
    attention = [[("attention", f"{prefix}.attn.{i}")] if attends else [] for i in range(depth)]
    return [[("residual", f"{prefix}.block.{i}"), *attention[i]] for i in range(depth)]


def _settings(tensors: ForeignTensors, depths: list[int], options: Options, *, dropout: float) -> dict[str, Any]:
    """Return the constructor settings of the `UNet`.  dropout: 0 except for CIFAR-10 (Ho et al. 2020, appendix B)."""
    base = tensors.sizes("temb.dense.0.weight", 2)[1]
    attends = [f"down.{level}.attn.0.q.weight" in tensors for level in range(len(depths))]
    resolution = _resolution(attends, options, tensors.file)
    widths = [tensors.sizes(f"down.{level}.block.0.conv1.weight", 4)[0] for level in range(len(depths))]
    return {
        "_target_": "diffusion_lab.networks.UNet",
        "in_channels": tensors.sizes("conv_in.weight", 4)[1],
        "out_channels": tensors.sizes("conv_out.weight", 4)[0],
        "resolution": resolution,
        "channels": base,
        "channel_multipliers": multipliers(widths, base),
        "num_blocks": depths if len(set(depths)) > 1 else depths[0],
        "attention_resolutions": [resolution // 2**level for level, has in enumerate(attends) if has],
        "blocks": {
            "_target_": "diffusion_lab.networks.Blocks",
            "dropout": dropout,
            "num_groups": 32,
            "scale_shift": False,
            "resize": "strided",
            "num_heads": None,
            "head_channels": None,
            "norm_eps": 1e-6,
            "initialization": "ddpm",
        },
        "labels": {"_target_": "diffusion_lab.networks.Labels", "num_classes": 0, "dropout": 0.0},
        "sinusoids": {"_target_": "diffusion_lab.networks.Sinusoids", "kind": "ddpm", "time_scale": 1.0},
    }


def _resolution(attends: list[bool], options: Options, file: Path) -> int:
    """Return the resolution of the images: that at which the first level with attention has 16 x 16 positions.

    Raises UserError if no level has attention and the resolution is not given.
    """
    if options.resolution is not None:
        return options.resolution
    if not any(attends):
        raise UserError(f"resolution must be given (resolution=32) for {file}, which has no level with attention.")
    return int(ATTENTION_RESOLUTION * 2 ** attends.index(True))


def _set(file: Path) -> tuple[str | None, str]:
    """Return the data set that the path of a file names, and the variance of its reverse process."""
    parts = re.split(r"[^a-z0-9]+", "/".join(file.parts[-3:]).lower())
    return next((found for word, found in SETS.items() if word in parts), (None, "fixed_large"))

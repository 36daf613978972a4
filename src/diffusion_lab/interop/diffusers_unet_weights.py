"""The weights of `UNet2DModel` of `diffusers` under the names of `UNet`, and back."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lab.interop.own_settings import OwnUNet
from diffusion_lab.interop.weights_files import require_same

RESIDUAL = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "embedding": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "out": "to_out.0"}
ENDS = {
    "conv_in": "conv_in",
    "time_embedding.layers.0": "time_embedding.linear_1",
    "time_embedding.layers.2": "time_embedding.linear_2",
    "label_embedding": "class_embedding",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
FIRST_LINEAR = "time_embedding.layers.0.weight"

EARLIER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the layers of attention before version 0.15 of `diffusers`, which google/ddpm-* has."""


def own_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: OwnUNet, path: Path, *, swap: bool
) -> dict[str, Tensor]:
    """Return the weights of a UNet2DModel under the names of `UNet`.

    found: weights of the model.  expected: state_dict of the `UNet`, on any device.  path: file, for error messages.
    swap: whether sines and cosines have the other order, see `swaps_sinusoids`.
    Raises UserError unless `found` contains exactly the weights of this network.
    """
    found = {_current(name): tensor for name, tensor in found.items()}
    require_same(found, diffusers_weights(expected, network), path)
    modules = _modules(network)
    own = {name: _own_tensor(name, tensor, found, modules) for name, tensor in expected.items()}
    if swap:
        own[FIRST_LINEAR] = own[FIRST_LINEAR].roll(own[FIRST_LINEAR].shape[1] // 2, dims=1)
    return own


def diffusers_weights(own: Mapping[str, Tensor], network: OwnUNet) -> dict[str, Tensor]:
    """Return the weights of a `UNet` under the names of UNet2DModel.

    own: state_dict of the `UNet`. The weights of augmentation labels are left out: without augmentation they have no
        effect.
    """
    modules, weights = _modules(network), dict[str, Tensor]()
    for name, tensor in own.items():
        module, _, kind = name.rpartition(".")
        if module == "time_embedding.augmentation":
            continue
        theirs = modules[module]
        if theirs.endswith("to_qkv"):
            parts = tensor.flatten(1) if kind == "weight" else tensor
            for part, value in zip("qkv", parts.chunk(3), strict=True):
                weights[f"{theirs.removesuffix('qkv')}{part}.{kind}"] = value
        else:
            weights[f"{theirs}.{kind}"] = (
                tensor.flatten(1) if theirs.endswith("to_out.0") and kind == "weight" else tensor
            )
    return weights


def with_label(own: Mapping[str, Tensor], network: OwnUNet, label: int) -> dict[str, Tensor]:
    """Return the weights of an unconditional `UNet` that computes what a conditional one computes for one class.

    label: number of the class, or of the null label.
    """
    own = dict(own)
    first, last = own["time_embedding.layers.0.bias"], own["time_embedding.layers.2.bias"]
    if network.sinusoids.add_label:
        weight, bias = own.pop("time_embedding.label.weight"), own.pop("time_embedding.label.bias")
        num_classes = network.labels.num_classes
        vector = bias if label == num_classes else bias + math.sqrt(num_classes) * weight[:, label]
        own["time_embedding.layers.0.bias"] = first + own[FIRST_LINEAR] @ vector
    else:
        own["time_embedding.layers.2.bias"] = last + own.pop("label_embedding.weight")[label]
    return own


def without_variance(own: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return the weights of a `UNet` without the output channels for the variance.  channels: channels of the image."""
    ends = ("conv_out.weight", "conv_out.bias")
    return {name: tensor[:channels] if name in ends else tensor for name, tensor in own.items()}


def _current(name: str) -> str:
    pattern = "|".join(map(re.escape, EARLIER))
    return re.sub(pattern, lambda found: EARLIER[found[0]], name) if "attentions." in name else name


def _own_tensor(name: str, expected: Tensor, found: Mapping[str, Tensor], modules: Mapping[str, str]) -> Tensor:
    module, _, kind = name.rpartition(".")
    theirs = modules[module]
    if theirs.endswith("to_qkv"):
        tensor = torch.cat([found[f"{theirs.removesuffix('qkv')}{part}.{kind}"] for part in "qkv"])
    else:
        tensor = found[f"{theirs}.{kind}"]
    return tensor.reshape(expected.shape)


def _modules(network: OwnUNet) -> dict[str, str]:
    """Return the name in UNet2DModel of each module with weights, by its name in `UNet`."""
    pairs = dict(ENDS)
    for block, theirs in _blocks(network):
        kinds = {"resnets": RESIDUAL, "attentions": ATTENTION}.get(theirs.split(".")[-2])
        if kinds is None:  # the module that resizes a level: a convolution, or a residual block
            kinds = RESIDUAL if network.blocks.resize == "residual" else {"conv": "conv"}
        pairs |= {f"{block}.{own}": f"{theirs}.{other}" for own, other in kinds.items()}
    return pairs


def _blocks(network: OwnUNet) -> Iterator[tuple[str, str]]:
    """Yield the name of each block in `UNet` and in UNet2DModel."""
    depth, attends = network.levels.depths[0], network.attends
    num_levels = len(attends)
    yield from (("middle.0", "mid_block.resnets.0"), ("middle.1", "mid_block.attentions.0"))
    yield "middle.2", "mid_block.resnets.1"
    stage = 0
    for level in range(num_levels):
        for k in range(depth):
            yield f"down.{stage}.0", f"down_blocks.{level}.resnets.{k}"
            if attends[level]:
                yield f"down.{stage}.1", f"down_blocks.{level}.attentions.{k}"
            stage += 1
        if level < num_levels - 1:
            yield f"down.{stage}.0", f"down_blocks.{level}.downsamplers.0"
            stage += 1
    stage = 0
    for position, level in enumerate(reversed(range(num_levels))):
        for k in range(depth + 1):
            yield f"up.{stage}.0", f"up_blocks.{position}.resnets.{k}"
            if attends[level]:
                yield f"up.{stage}.1", f"up_blocks.{position}.attentions.{k}"
            if k == depth and level > 0:
                yield f"up.{stage}.{1 + attends[level]}", f"up_blocks.{position}.upsamplers.0"
            stage += 1

"""`DiTTransformer2DModel` of `diffusers` as a `DiT`, and back.

`diffusers` embeds the time with the frequencies of DDPM, and not with those of Peebles & Xie (2023, code). Only a `DiT`
with `DiTVariant.time_kind` ddpm therefore has an exact counterpart. Each block has its own copy of the embedding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop.foreign_config import ForeignConfig
from diffusion_lab.interop.own_settings import built, labels_node, require
from diffusion_lab.interop.weights_files import require_same
from diffusion_lab.networks import DiTVariant, Labels

DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "attention_type": "default",
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
"""Arguments of DiTTransformer2DModel with their defaults, and attention_type of Transformer2DModel."""

MLP_RATIO = 4.0
"""Ratio of hidden channels to channels in the MLPs of DiTTransformer2DModel."""

PIPELINE_CLASSES = 1000
"""Number of classes of DiTPipeline, whose null label is 1000."""

EMBEDDING = {
    "time_embedding.layers.0": "timestep_embedder.linear_1",
    "time_embedding.layers.2": "timestep_embedder.linear_2",
    "label_embedding": "class_embedder.embedding_table",
}
BLOCK = {
    "modulation": "norm1.linear",
    "attention.out": "attn1.to_out.0",
    "mlp.0": "ff.net.0.proj",
    "mlp.3": "ff.net.2",
}
FIRST_LINEAR = "time_embedding.layers.0.weight"
ENDS = {"patches": "pos_embed.proj", "head.modulation": "proj_out_1", "head.out": "proj_out_2"}


def is_dit(content: dict[str, Any]) -> bool:
    """Return whether the config of a model is that of a DiT; `diffusers` before 0.28 had no separate class for it."""
    name = content.get("_class_name")
    return name == "DiTTransformer2DModel" or (
        name == "Transformer2DModel" and content.get("norm_type") == "ada_norm_zero"
    )


def own_settings(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the config node of a `DiT` that computes the same function as a DiTTransformer2DModel.

    content: config of the model.  path: file of the config, for error messages.
    Raises UserError for a setting that has no counterpart.
    """
    config = ForeignConfig(content, DEFAULTS, path)
    if unknown := [key for key in config.unused if content[key] not in (None, False)]:
        raise UserError(f"`{unknown[0]}` must not be in {path}: this setting of DiTTransformer2DModel is not known.")
    config.require("norm_type", "ada_norm_zero")
    config.require("activation_fn", "gelu-approximate")
    config.require("attention_bias", True)
    config.require("attention_type", "default")
    config.require("norm_elementwise_affine", False)
    num_heads, in_channels = config.whole("num_attention_heads"), config.whole("in_channels")
    return {
        "_target_": "diffusion_lab.networks.DiT",
        "in_channels": in_channels,
        "out_channels": in_channels if config["out_channels"] is None else config.whole("out_channels"),
        "resolution": config.resolution("sample_size"),
        "patch_size": config.whole("patch_size"),
        "channels": num_heads * config.whole("attention_head_dim"),
        "depth": config.whole("num_layers"),
        "num_heads": num_heads,
        "mlp_ratio": MLP_RATIO,
        "dropout": config.number("dropout"),
        # The table always has a row for the null label, which is the last one.
        "labels": labels_node(config.whole("num_embeds_ada_norm"), dropout=0.1),
        "num_augmentation_channels": 0,
        "condition_channels": 0,
        "checkpointing": False,
        "variant": {
            "_target_": "diffusion_lab.networks.DiTVariant",
            "time_kind": "ddpm",
            "mlp_norm_eps": config.number("norm_eps"),
        },
    }


def diffusers_settings(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a DiTTransformer2DModel that computes the same function as a `DiT`, without its variance.

    node: config node of the `DiT`.  Raises UserError that names the setting for which there is no such model.
    """
    labels, variant = built(node.get("labels"), Labels), built(node.get("variant"), DiTVariant)
    require(variant.time_kind == "ddpm", "model.variant.time_kind", "ddpm", variant.time_kind)
    ratio, extra = node.get("mlp_ratio", MLP_RATIO), node.get("condition_channels", 0)
    require(ratio == MLP_RATIO, "model.mlp_ratio", str(MLP_RATIO), ratio)
    require(extra == 0, "model.condition_channels", "0", f"{extra} channels of a condition image")
    require(
        labels.num_classes == PIPELINE_CLASSES, "data.num_classes", "1000 with conditioning=label", labels.num_classes
    )
    require(labels.dropout > 0, "conditioning.dropout", "above 0", labels.dropout)
    num_heads, channels = node.get("num_heads", 6), node.get("channels", 384)
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": num_heads,
        "attention_head_dim": channels // num_heads,
        "in_channels": node["in_channels"],
        "out_channels": node["in_channels"],
        "num_layers": node.get("depth", 12),
        "dropout": node.get("dropout", 0.0),
        "norm_num_groups": 32,
        "attention_bias": True,
        "sample_size": node["resolution"],
        "patch_size": node.get("patch_size", 2),
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": labels.num_classes,
        "upcast_attention": False,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": variant.mlp_norm_eps,
    }


def own_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], node: Mapping[str, Any], path: Path
) -> dict[str, Tensor]:
    """Return the weights of a DiTTransformer2DModel under the names of `DiT`.

    found: weights of the model.  expected: state_dict of the `DiT`, on any device.  node: config node of the `DiT`.
    path: file, for error messages.
    Raises UserError unless `found` contains exactly the weights of this network, with one embedding for all blocks.
    """
    require_same(found, diffusers_weights(expected, node), path)
    _require_one_embedding(found, path)
    own = dict[str, Tensor]()
    for name, tensor in expected.items():
        value = torch.cat([found[each] for each in _names(name)])
        if name == FIRST_LINEAR:
            value = _other_half_first(value)
        if name.startswith("head.out."):  # channels last -> channels first
            patch_size = node["patch_size"]
            value = value.reshape(patch_size, patch_size, -1, *value.shape[1:]).movedim(2, 0)
        own[name] = value.reshape(tensor.shape)
    return own


def diffusers_weights(own: Mapping[str, Tensor], node: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a `DiT` under the names of DiTTransformer2DModel.

    own: state_dict of the `DiT`. The weights of augmentation labels are left out: without augmentation they have no
        effect.
    node: config node of the `DiT`.
    """
    patch_size, depth = node.get("patch_size", 2), node.get("depth", 12)
    weights = dict[str, Tensor]()
    for name, tensor in own.items():
        if name.startswith("time_embedding.augmentation."):
            continue
        value, theirs = tensor, _names(name)
        if name == FIRST_LINEAR:
            value = _other_half_first(value)
        elif name == "patches.weight":
            value = value.reshape(len(value), -1, patch_size, patch_size)
        elif name.startswith("head.out."):  # channels first -> channels last
            value = value.reshape(-1, patch_size, patch_size, *value.shape[1:]).movedim(0, 2).flatten(0, 2)
        if ".norm1.emb." in theirs[0]:  # a file cannot contain the same memory twice
            copies = (theirs[0].replace(".0.", f".{block}.", 1) for block in range(depth))
            weights |= {copy: value.clone() for copy in copies}
        else:
            weights |= dict(zip(theirs, value.chunk(len(theirs)), strict=True))
    return weights


def without_variance(own: Mapping[str, Tensor], node: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a `DiT` without the output channels for the variance.  node: config node of the `DiT`."""
    rows = node["in_channels"] * node.get("patch_size", 2) ** 2
    return {name: tensor[:rows] if name.startswith("head.out.") else tensor for name, tensor in own.items()}


def _names(name: str) -> list[str]:
    """Return the names of a tensor of `DiT` in DiTTransformer2DModel: three for queries, keys and values."""
    module, _, kind = name.rpartition(".")
    if module in ENDS:
        return [f"{ENDS[module]}.{kind}"]
    if module in EMBEDDING:
        return [f"transformer_blocks.0.norm1.emb.{EMBEDDING[module]}.{kind}"]
    _, block, part = module.split(".", 2)
    if part == "attention.qkv":
        return [f"transformer_blocks.{block}.attn1.to_{each}.{kind}" for each in "qkv"]
    return [f"transformer_blocks.{block}.{BLOCK[part]}.{kind}"]


def _other_half_first(weight: Tensor) -> Tensor:
    """Return a weight whose inputs are the cosines and then the sines for one whose inputs are in the other order."""
    return weight.roll(weight.shape[1] // 2, dims=1)


def _require_one_embedding(found: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError unless the embeddings of all blocks are the same."""
    for name, tensor in found.items():
        first = found.get(_of_first_block(name), tensor) if ".norm1.emb." in name else tensor
        if first is not tensor and not torch.equal(first, tensor):
            raise UserError(
                f"{path} must contain the same embedding of time and labels in all blocks, as the code of Peebles & "
                f"Xie (2023) has it, got another {name}."
            )


def _of_first_block(name: str) -> str:
    parts = name.split(".")
    return ".".join([parts[0], "0", *parts[2:]])

"""The settings of `UNet2DModel` of `diffusers`, in those of `UNet`, and back.

What has no counterpart is refused by an error that names the setting.
"""

import math
from pathlib import Path
from typing import Any

from diffusion_lab.errors import UserError
from diffusion_lab.interop.foreign_config import ForeignConfig
from diffusion_lab.interop.own_settings import OwnUNet, labels_node

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""Arguments of the constructor of UNet2DModel with their defaults (`diffusers` 0.42)."""

DOWN, UP = ("DownBlock2D", "ResnetDownsampleBlock2D"), ("UpBlock2D", "ResnetUpsampleBlock2D")
"""Blocks without attention that resize by a convolution, and by a residual block."""

ATTENTION_DOWN, ATTENTION_UP = "AttnDownBlock2D", "AttnUpBlock2D"


def own_settings(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the config node of a `UNet` that computes the same function as a UNet2DModel.

    content: config of the model.  path: file of the config, for error messages.
    Raises UserError for a setting that has no counterpart.
    """
    config = ForeignConfig(content, DEFAULTS, path)
    _require_supported(config, content)
    widths = config.sequence("block_out_channels", int)
    if min(widths) < 4 or max(widths) > 2**20:
        raise config.refuse("block_out_channels", "numbers of channels of at least 4")
    if config["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise config.refuse("time_embedding_dim", f"null or {4 * widths[0]} (four times the first block_out_channels)")
    side = config.resolution("sample_size")
    attends = _attends(config, len(widths))
    return {
        "_target_": "diffusion_lab.networks.UNet",
        "in_channels": config.whole("in_channels"),
        "out_channels": config.whole("out_channels"),
        "resolution": side,
        "channels": widths[0],
        "channel_multipliers": [_multiplier(widths[0], width) for width in widths],
        "num_blocks": config.whole("layers_per_block"),
        "attention_resolutions": [side // 2**level for level, attend in enumerate(attends) if attend],
        "attend_once_on_way_up": False,
        "blocks": _blocks(config, attends, widths),
        "labels": labels_node(0 if config["num_class_embeds"] is None else config.whole("num_class_embeds")),
        "patch_size": 1,
        "num_augmentation_channels": 0,
        "condition_channels": 0,
        "sinusoids": {
            "_target_": "diffusion_lab.networks.Sinusoids",
            "kind": "ddpm" if config["freq_shift"] == 1 else "adm",
            "time_scale": 1.0,
            "max_period": 10_000.0,
            "add_label": False,
        },
    }


def swaps_sinusoids(content: dict[str, Any]) -> bool:
    """Return whether a UNet2DModel has sines and cosines in the other order than the `UNet` of `own_settings`."""
    values = {**DEFAULTS, **content}
    return bool(values["flip_sin_to_cos"]) is bool(values["freq_shift"] == 1)


def diffusers_settings(network: OwnUNet, *, num_class_embeds: int | None) -> dict[str, Any]:
    """Return the config of a UNet2DModel that computes the same function as a `UNet`, without its variance output.

    network: settings of the `UNet`.  num_class_embeds: number of rows of the table of labels; None without labels.
    Raises UserError that names the setting for which no UNet2DModel exists.
    """
    network.require_exportable()
    blocks = network.blocks
    is_residual = blocks.resize == "residual"
    kind = network.sinusoids.kind
    return {
        "_class_name": "UNet2DModel",
        "sample_size": network.resolution,
        "in_channels": network.in_channels,
        "out_channels": network.in_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 1 if kind == "ddpm" else 0,
        "flip_sin_to_cos": kind == "adm",
        "down_block_types": [ATTENTION_DOWN if attend else DOWN[is_residual] for attend in network.attends],
        "up_block_types": [ATTENTION_UP if attend else UP[is_residual] for attend in reversed(network.attends)],
        "mid_block_type": "UNetMidBlock2D",
        "block_out_channels": list(network.levels.widths),
        "layers_per_block": network.levels.depths[0],
        "mid_block_scale_factor": 1,
        "downsample_padding": 0 if blocks.resize == "strided" else 1,
        "downsample_type": "resnet" if is_residual else "conv",
        "upsample_type": "resnet" if is_residual else "conv",
        "dropout": blocks.dropout,
        "act_fn": "silu",
        "attention_head_dim": network.head_channels(),
        "norm_num_groups": blocks.num_groups,
        "attn_norm_num_groups": blocks.num_groups if blocks.middle_norm else None,
        "norm_eps": blocks.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if blocks.scale_shift else "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": num_class_embeds,
    }


def _require_supported(config: ForeignConfig, content: dict[str, Any]) -> None:
    """Raise UserError for a setting, or a value of a setting, that has no counterpart."""
    if unknown := [key for key in config.unused if content[key] not in (None, False)]:
        raise UserError(f"`{unknown[0]}` must not be in {config.path}: this setting of UNet2DModel is not known.")
    config.require("time_embedding_type", "positional")
    config.require("class_embed_type", None)
    config.require("mid_block_type", "UNetMidBlock2D")
    config.require("act_fn", "silu", "swish")
    config.require("center_input_sample", False)
    config.require("add_attention", True)
    config.require("mid_block_scale_factor", 1, 1.0)
    config.require("freq_shift", 0, 1, 0.0, 1.0)
    config.require("resnet_time_scale_shift", "default", "scale_shift")
    config.require("attn_norm_num_groups", None, config.whole("norm_num_groups"))
    config.flag("flip_sin_to_cos")


def _attends(config: ForeignConfig, num_levels: int) -> list[bool]:
    """Return whether each level has attention.  Raises UserError unless encoder and decoder are the same."""
    down, up = config.sequence("down_block_types", str), config.sequence("up_block_types", str)
    for key, names, accepted in (
        ("down_block_types", down, (*DOWN, ATTENTION_DOWN)),
        ("up_block_types", up, (*UP, ATTENTION_UP)),
    ):
        if len(names) != num_levels or any(name not in accepted for name in names):
            raise config.refuse(key, f"a list of {num_levels} of {', '.join(accepted)}")
    attends = [name == ATTENTION_DOWN for name in down]
    if attends != [name == ATTENTION_UP for name in reversed(up)]:
        raise config.refuse("up_block_types", "blocks with attention at the levels at which down_block_types has it")
    return attends


def _blocks(config: ForeignConfig, attends: list[bool], widths: list[int]) -> dict[str, Any]:
    """Return the config node of `Blocks`.  Raises UserError for settings that it does not have."""
    head_channels = None if config["attention_head_dim"] is None else config.whole("attention_head_dim")
    attended = [width for width, attend in zip(widths, attends, strict=True) if attend]
    if head_channels and any(width % head_channels for width in (*attended, widths[-1])):
        raise config.refuse("attention_head_dim", "a divisor of the channels of all levels with attention")
    scale_shift = config["resnet_time_scale_shift"] == "scale_shift"
    return {
        "_target_": "diffusion_lab.networks.Blocks",
        "dropout": config.number("dropout"),
        "num_groups": config.whole("norm_num_groups"),
        "scale_shift": scale_shift,
        "resize": _resize(config, attends),
        "num_heads": None,
        "head_channels": head_channels,
        "rescale": False,
        "checkpointing": False,
        "norm_eps": config.number("norm_eps"),
        "initialization": "torch",
        "middle_norm": not scale_shift or config["attn_norm_num_groups"] is not None,
    }


def _resize(config: ForeignConfig, attends: list[bool]) -> str:
    """Return the setting `Blocks.resize`.  Raises UserError if the levels are resized in different ways."""
    down, up = config["down_block_types"][:-1], config["up_block_types"][:-1]  # the last block does not resize
    kinds = {
        ("down_block_types", name == DOWN[1] or (name == ATTENTION_DOWN and config["downsample_type"] == "resnet"))
        for name in down
    } | {
        ("up_block_types", name == UP[1] or (name == ATTENTION_UP and config["upsample_type"] == "resnet"))
        for name in up
    }
    for key in ("downsample_type", "upsample_type"):
        config.require(key, "conv", "resnet")
    if len({residual for _, residual in kinds}) > 1:
        raise config.refuse(
            "down_block_types",
            "blocks that resize in the same way as up_block_types, downsample_type and upsample_type",
        )
    if any(residual for _, residual in kinds):
        return "residual"
    return "strided" if config.require("downsample_padding", 0, 1) == 0 else "strided_symmetric"


def _multiplier(channels: int, width: int) -> float:
    """Return a number m with int(channels * m) == width."""
    multiplier = width / channels
    if multiplier.is_integer():
        return int(multiplier)
    return multiplier if int(channels * multiplier) == width else math.nextafter(multiplier, math.inf)

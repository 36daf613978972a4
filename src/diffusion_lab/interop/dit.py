"""Transformers in the layout of facebookresearch/DiT (format dit), whose networks work on latents.

The file does not contain the number of heads, which the published sizes determine. The last label is the null class.
The positions are fixed, and those of the file must be those of `DiT`. The last layer has the channels of a patch in the
order [row, column, channel]; that of `DiT` has [channel, row, column].
"""

import re
from functools import partial
from math import isqrt
from typing import Any

from torch import Tensor

from diffusion_lab.config.overrides import quote
from diffusion_lab.errors import UserError
from diffusion_lab.interop.imported import Imported, Options
from diffusion_lab.interop.run_overrides import data_overrides, label_overrides, variance_overrides, without_given
from diffusion_lab.interop.tensors import ForeignTensors, Plan, converted
from diffusion_lab.interop.unet_layout import layer
from diffusion_lab.networks.dit import grid_positions

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Number of channels of a published size -> number of heads (Peebles & Xie 2023, Table 1)."""

LATENT_FACTOR = 8
"""Ratio of the resolutions of images and latents."""

BLOCK = {
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "modulation": "adaLN_modulation.1",
}
"""Names of the layers of a block of `DiT`, and in the file."""


def recognizes(names: set[str]) -> bool:
    """Return whether a file with these tensors has this layout."""
    return {"x_embedder.proj.weight", "t_embedder.mlp.0.weight"} <= names


def read(tensors: ForeignTensors, options: Options) -> Imported:
    """Return the network of a file.

    Raises UserError if the file has other tensors, or if it needs settings that are not given.
    """
    settings = _settings(tensors, options)
    positions = tensors.tensors.pop("pos_embed")
    _require_positions(positions, settings, tensors)
    weights = converted(_plan(settings), tensors, settings)
    num_classes, channels = settings["labels"]["num_classes"], settings["in_channels"]
    overrides = data_overrides(
        "imagenet256" if num_classes == 1000 else None,
        resolution=LATENT_FACTOR * settings["resolution"], channels=3, num_classes=num_classes,
    )  # fmt: skip
    overrides += ["schedule=linear", "schedule.num_timesteps=1000", *label_overrides(num_classes, 0.1)]
    overrides += variance_overrides(learned=settings["out_channels"] > channels)
    overrides += ["sampler=ancestral", "sampler.num_steps=250", "ema=constant", "space=sd_latents"]
    overrides += ["guidance.num_channels=3"]
    if options.autoencoder is not None:
        overrides.append(f"space.autoencoder.pretrained_model_name_or_path={quote(options.autoencoder)}")
    conventions = {
        "num_heads": settings["num_heads"], "null_class": num_classes, "time": "step index",
        "sinusoids": "cosines first", "norm_eps": 1e-6,
    }  # fmt: skip
    found = re.fullmatch(r"0*(\d{1,9})\.pt", tensors.file.name)  # of the training code: 0050000.pt
    given = without_given(overrides, options.given)
    return Imported("train", settings, weights, given, conventions, int(found[1]) if found else 0)


def _settings(tensors: ForeignTensors, options: Options) -> dict[str, Any]:
    """Return the constructor settings of the `DiT`.  Raises UserError if its number of heads is not known."""
    channels, in_channels, patch_size, _ = tensors.sizes("x_embedder.proj.weight", 4)
    side = isqrt(tensors.sizes("pos_embed", 3)[1])
    num_rows = tensors.sizes("y_embedder.embedding_table.weight", 2)[0]
    depth = 1 + max((int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d{1,4})\.", name))), default=0)
    heads = options.num_heads or (channels // options.head_channels if options.head_channels else HEADS.get(channels))
    if heads is None:
        raise UserError(
            f"num_heads must be given (num_heads=6) for {tensors.file}, whose {channels} channels are not those of a "
            f"published size ({', '.join(map(str, HEADS))})."
        )
    return {
        "_target_": "diffusion_lab.networks.DiT",
        "in_channels": in_channels,
        "out_channels": tensors.sizes("final_layer.linear.weight", 2)[0] // patch_size**2,
        "resolution": side * patch_size,
        "patch_size": patch_size,
        "channels": channels,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": tensors.sizes("blocks.0.mlp.fc1.weight", 2)[0] / channels,
        "labels": {"_target_": "diffusion_lab.networks.Labels", "num_classes": num_rows - 1, "dropout": 0.1},
    }


def _require_positions(positions: Tensor, settings: dict[str, Any], tensors: ForeignTensors) -> None:
    """Raise UserError unless the positions in the file are those that `DiT` computes."""
    side, channels = settings["resolution"] // settings["patch_size"], settings["channels"]
    is_same = tuple(positions.shape) == (1, side**2, channels) and channels % 4 == 0
    if is_same and positions.device.type != "meta":
        is_same = float((positions - grid_positions(side, channels)).abs().max()) < 1e-4
    if not is_same:
        raise UserError(f"{tensors.file}: pos_embed must be the sines and cosines of a square grid, got other values.")


def _plan(settings: dict[str, Any]) -> Plan:
    plan = layer("time_embedding.layers.0", "t_embedder.mlp.0") | layer("time_embedding.layers.2", "t_embedder.mlp.2")
    plan |= layer("label_embedding", "y_embedder.embedding_table", bias=False)
    plan |= layer("patches", "x_embedder.proj", transform=_as_matrix)
    for number in range(settings["depth"]):
        for own, foreign in BLOCK.items():
            plan |= layer(f"blocks.{number}.{own}", f"blocks.{number}.{foreign}")
    plan |= layer("head.modulation", "final_layer.adaLN_modulation.1")
    return plan | layer("head.out", "final_layer.linear", transform=partial(_channels_first, settings["patch_size"]))


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.dim() > 1 else tensor


def _channels_first(patch_size: int, tensor: Tensor) -> Tensor:
    """Reorder rows from [row, column, channel] to [channel, row, column]."""
    rows = tensor.reshape(patch_size, patch_size, -1, *tensor.shape[1:])
    return rows.movedim(2, 0).reshape(tensor.shape)

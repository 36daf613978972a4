"""Networks of NVlabs/edm (formats ddpmpp and edm): DDPM++ (`SongUNet`) and ADM (`DhariwalUNet`) in its own layout.

Names: `enc.RxR_block0` and `dec.RxR_up` are blocks at resolution R. A block with attention has it in the same module,
and the rows of qkv are ordered by head, channel, and then queries, keys and values. DDPM++ adds a linear map of scaled
one-hot labels to the sinusoids (sines first), ADM a table without bias to the embedding (cosines first). The zero
vector means no class. NCSN++, another network of the same files, has no counterpart.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop.attention import as_convolution, from_channels_first
from diffusion_lab.interop.edm_pickle import Node, named_tensors
from diffusion_lab.interop.imported import Imported, Options
from diffusion_lab.interop.openai_unet import multipliers
from diffusion_lab.interop.run_overrides import data_overrides, label_overrides, variance_overrides, without_given
from diffusion_lab.interop.tensors import ForeignTensors, Part, Plan, Transform, converted
from diffusion_lab.interop.unet_layout import Block, Names, UNetLayout, layer, unet_plan

RESIDUAL: Names = {
    "norm_in": ("norm0",),
    "conv_in": ("conv0",),
    "embedding": ("affine",),
    "norm_out": ("norm1",),
    "conv_out": ("conv1",),
    "skip": ("skip",),
}
NAMES: dict[str, Names] = {
    "residual": RESIDUAL,
    "attention": {"norm": ("norm2",), "qkv": ("qkv",), "out": ("proj",)},
}
"""Names of the layers of each kind of block."""

KINDS = {"SongUNet": "DDPM++", "DhariwalUNet": "ADM"}


SETS = {"cifar10": "cifar10", "ffhq": "ffhq", "afhqv2": "afhq", "imagenet": "imagenet{}"}
"""Word in the name of a published file -> choice of the group `data`, which may depend on the resolution."""

EDM_AUGMENTATION_CHANNELS = 9


def read(network: Node, file: Path, options: Options, *, only_ddpmpp: bool = False) -> Imported:
    """Return the network of a file.  only_ddpmpp: whether to refuse all networks but DDPM++.

    Raises UserError for a network without a counterpart, and if the file has other tensors.
    """
    model = network.children().get("model")
    if model is None or model.kind not in KINDS:
        kind = network.kind if model is None else model.kind
        raise UserError(f"{file} must contain a network of the class {' or '.join(KINDS)}, got {kind[:60]}.")
    _refuse_others(network, model, file, only_ddpmpp=only_ddpmpp)
    layout = f"{KINDS[model.kind]} in a file of EDM"
    tensors = ForeignTensors(_without_filters(named_tensors(model), file), file, layout)
    settings = _settings(model, tensors)
    plan = _plan(model, tensors, settings)
    weights = converted(plan, tensors, settings)
    conventions = {
        "attention_order": "head, channel, q k v", "norm_eps": settings["blocks"]["norm_eps"],
        "time": "log(sigma) / 4" if network.kind == "EDMPrecond" else "999 t", "null_class": "zero vector",
        "sinusoids": "sines first" if model.kind == "SongUNet" else "cosines first",
    }  # fmt: skip
    overrides = _overrides(network, settings, file)
    return Imported("train", settings, weights, without_given(overrides, options.given), conventions)


def _refuse_others(network: Node, model: Node, file: Path, *, only_ddpmpp: bool) -> None:
    """Raise UserError for a network or a preconditioning that has no counterpart in this package."""
    noise = model.children().get("map_noise")
    filters = [tensor for name, tensor in named_tensors(model).items() if name.endswith("resample_filter")]
    is_ncsnpp = (noise is not None and noise.kind == "FourierEmbedding") or any(f.numel() != 4 for f in filters)
    if is_ncsnpp or any("_aux_residual" in name or "_aux_skip" in name for name in named_tensors(model)):
        raise UserError(f"{file} must contain DDPM++ (*-vp.pkl) or ADM (*-adm.pkl), got NCSN++ (*-ve.pkl).")
    if network.kind not in ("EDMPrecond", "VPPrecond"):
        raise UserError(
            f"{file} must contain a network with the preconditioning EDMPrecond or VPPrecond, got {network.kind[:60]}."
        )
    if only_ddpmpp and model.kind != "SongUNet":
        raise UserError(f"{file} must contain DDPM++ for format=ddpmpp, got {KINDS[model.kind]}; use format=edm.")


def _without_filters(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return the tensors without the filters of resampling, which are the mean of 2 x 2 pixels in `UNet`.

    Raises UserError for other filters.
    """
    filters = {name: tensor for name, tensor in tensors.items() if name.endswith("resample_filter")}
    for name, tensor in filters.items():
        if not torch.equal(tensor.float(), torch.full((1, 1, 2, 2), 0.25)):
            raise UserError(f"{file}: {name} must be the mean of 2 x 2 pixels, got another filter.")
    return {name: tensor for name, tensor in tensors.items() if name not in filters}


def _levels(tensors: ForeignTensors) -> dict[int, int]:
    """Return the number of blocks of the encoder at each resolution, with the highest one first.

    Raises UserError if a resolution is not half of the previous one.
    """
    found: dict[int, int] = {}
    for name in tensors:
        if match := re.fullmatch(r"enc\.(\d{1,4})x\1_block(\d{1,2})\.conv0\.weight", name):
            side = int(match[1])
            found[side] = max(found.get(side, 0), int(match[2]) + 1)
    sides = sorted(found, reverse=True)
    if not sides or sides != [sides[0] // 2**level for level in range(len(sides))]:
        raise UserError(f"{tensors.file} must have blocks at halved resolutions, got {sides or 'none'}.")
    return {side: found[side] for side in sides}


def _block(tensors: ForeignTensors, prefix: str) -> list[Block]:
    """Return the residual block with a prefix, and its attention if it has one."""
    attention: list[Block] = [("attention", prefix)] if f"{prefix}.qkv.weight" in tensors else []
    return [("residual", prefix), *attention]


def _layout(tensors: ForeignTensors) -> UNetLayout:
    levels = _levels(tensors)
    sides = list(levels)
    down, up = list[list[Block]](), list[list[Block]]()
    for side, depth in levels.items():
        if side != sides[0]:
            down.append(_block(tensors, f"enc.{side}x{side}_down"))
        down += [_block(tensors, f"enc.{side}x{side}_block{i}") for i in range(depth)]
    for side in reversed(sides):
        if side != sides[-1]:
            up[-1] += _block(tensors, f"dec.{side}x{side}_up")
        up += [_block(tensors, f"dec.{side}x{side}_block{i}") for i in range(levels[side] + 1)]
    lowest = f"dec.{sides[-1]}x{sides[-1]}"
    return UNetLayout(down, [*_block(tensors, f"{lowest}_in0"), *_block(tensors, f"{lowest}_in1")], up)


def _plan(model: Node, tensors: ForeignTensors, settings: dict[str, Any]) -> Plan:
    """Return the plan of all tensors of the network."""
    nodes = dict(model.walk())

    def attention(prefix: str) -> Transform:
        heads = nodes[prefix].get("num_heads") if prefix in nodes else None
        return partial(_from_edm, num_heads=heads if type(heads) is int and heads > 0 else 1)

    plan = unet_plan(_layout(tensors), NAMES, tensors.__contains__, attention)
    side = settings["resolution"]
    is_ddpmpp = model.kind == "SongUNet"
    ends = ("aux_norm", "aux_conv") if is_ddpmpp else ("out_norm", "out_conv")
    prefix = f"dec.{side}x{side}_" if is_ddpmpp else ""
    for own, name in (("norm_out", ends[0]), ("conv_out", ends[1])):
        plan |= layer(own, f"{prefix}{name}")
    plan |= layer("conv_in", f"enc.{side}x{side}_conv")
    plan |= layer("time_embedding.layers.0", "map_layer0") | layer("time_embedding.layers.2", "map_layer1")
    if settings["num_augmentation_channels"]:
        plan |= layer("time_embedding.augmentation", "map_augment", bias=False)
    if settings["labels"]["num_classes"] and is_ddpmpp:
        plan |= layer("time_embedding.label", "map_label")
    elif settings["labels"]["num_classes"]:
        table = partial(_table, has_null=settings["labels"]["dropout"] > 0)
        plan["label_embedding.weight"] = Part(("map_label.weight",), table)
    return plan


def _from_edm(tensor: Tensor, num_heads: int) -> Tensor:
    return from_channels_first(as_convolution(tensor), num_heads)


def _table(weight: Tensor, *, has_null: bool) -> Tensor:
    """Return the rows of an embedding table: one for each class, and zeros for the null class if there is one."""
    rows = weight.mT
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]) if has_null else rows


def _overrides(network: Node, settings: dict[str, Any], file: Path) -> list[str]:
    """Return the overrides of train that describe everything but the network, with the sampler of the paper."""
    side, num_classes = settings["resolution"], settings["labels"]["num_classes"]
    parts = re.split(r"[^a-z0-9]+", file.name.lower())
    data = next((choice.format(side) for word, choice in SETS.items() if word in parts), None)
    overrides = data_overrides(data, resolution=side, channels=settings["in_channels"], num_classes=num_classes)
    if network.kind == "EDMPrecond":
        overrides += ["schedule=edm", f"prediction.sigma_data={_number(network, 'sigma_data', file)}"]
    else:
        beta_min, beta_d = (_number(network, name, file) for name in ("beta_min", "beta_d"))
        overrides += ["schedule=vp", f"schedule.beta_min={beta_min}", f"schedule.beta_max={beta_min + beta_d}"]
    overrides += label_overrides(num_classes, settings["labels"]["dropout"]) + variance_overrides(learned=False)
    if settings["num_augmentation_channels"] == EDM_AUGMENTATION_CHANNELS:
        overrides += ["augmentation=edm"]
    steps = 18 if side <= 32 else 40  # Karras et al. (2022), Table 2: 35 and 79 evaluations of the network
    return [*overrides, "sampler=heun", f"sampler.num_steps={steps}", "clipping=none", "ema=constant"]


def _settings(model: Node, tensors: ForeignTensors) -> dict[str, Any]:
    """Return the constructor settings of the `UNet`."""
    base, levels = tensors.sizes("map_layer0.weight", 2)[1], _levels(tensors)
    widths = [tensors.sizes(f"enc.{side}x{side}_block0.conv1.weight", 4)[0] for side in levels]
    attends = [side for side in levels if f"enc.{side}x{side}_block0.qkv.weight" in tensors]
    depths, side, is_ddpmpp = list(levels.values()), next(iter(levels)), model.kind == "SongUNet"
    channels = tensors.sizes(f"enc.{side}x{side}_conv.weight", 4)[1]
    num_classes, num_augmentation_channels = (
        tensors.sizes(name, 2)[1] if name in tensors else 0 for name in ("map_label.weight", "map_augment.weight")
    )
    dropout = _number(model, "label_dropout", tensors.file) if num_classes else 0.0
    return {
        "_target_": "diffusion_lab.networks.UNet",
        "in_channels": channels,
        "out_channels": channels,
        "resolution": side,
        "channels": base,
        "channel_multipliers": multipliers(widths, base),
        "num_blocks": depths if len(set(depths)) > 1 else depths[0],
        "attention_resolutions": attends,
        "attend_once_on_way_up": is_ddpmpp,
        "blocks": _blocks(model, tensors.file, is_ddpmpp=is_ddpmpp),
        "labels": {"_target_": "diffusion_lab.networks.Labels", "num_classes": num_classes, "dropout": dropout},
        "num_augmentation_channels": num_augmentation_channels,
        "sinusoids": {
            "_target_": "diffusion_lab.networks.Sinusoids", "kind": "ddpm" if is_ddpmpp else "adm",
            "add_label": is_ddpmpp,
        },
    }  # fmt: skip


def _blocks(model: Node, file: Path, *, is_ddpmpp: bool) -> dict[str, Any]:
    """Return the settings of `Blocks`, which all blocks of the file must share."""
    nodes = [node for _, node in model.walk() if node.kind == "UNetBlock"]
    norms = [node for _, node in model.walk() if node.kind == "GroupNorm"]
    if not nodes or not norms:
        raise UserError(f"{file} must contain modules of the classes UNetBlock and GroupNorm, got none.")
    rescaled = _shared(nodes, "skip_scale", file)
    if min(abs(rescaled - 1), abs(rescaled - 0.5**0.5)) > 1e-6:
        raise UserError(f"{file}: skip_scale must be 1 or sqrt(1/2), got {rescaled}.")
    heads = {node.get("num_heads") for node in nodes if node.get("num_heads")}
    return {
        "_target_": "diffusion_lab.networks.Blocks",
        "dropout": _shared(nodes, "dropout", file),
        "num_groups": int(_shared(norms, "num_groups", file)),
        "scale_shift": bool(_shared(nodes, "adaptive_scale", file)),
        "resize": "projected" if is_ddpmpp else "residual",
        "num_heads": 1 if heads == {1} else None,
        "head_channels": None if heads == {1} else 64,
        "rescale": abs(rescaled - 1) > 1e-6,
        "norm_eps": _shared(norms, "eps", file),
        "initialization": "ddpmpp" if is_ddpmpp else "torch",
    }


def _shared(nodes: list[Node], name: str, file: Path) -> float:
    """Return an attribute of modules.  Raises UserError unless it is the same number in all of them."""
    values = {_number(node, name, file) for node in nodes}
    if len(values) != 1:
        raise UserError(f"{file}: {name} must be the same in all modules, got {', '.join(map(str, sorted(values)))}.")
    return values.pop()


def _number(node: Node, name: str, file: Path) -> float:
    value = node.get(name)
    if not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
        raise UserError(f"{file}: {name} of {node.kind[:60]} must be a number, got {str(value)[:60]}.")
    return float(value)

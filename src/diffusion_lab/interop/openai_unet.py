"""U-Nets in the layout of openai/improved-diffusion and openai/guided-diffusion (formats improved_ddpm and adm).

Names: `input_blocks.I.J`, `middle_block.J` and `output_blocks.I.J` are the blocks of stage I. A residual block has the
layers in_layers, emb_layers, out_layers and skip_connection, an attention block norm, qkv and proj_out, a strided block
op or conv. The rows of qkv are ordered by head first (`legacy`), or as in this package (`new`: the 64 x 64 network of
Dhariwal & Nichol 2021). The file contains neither the number of heads nor the resolution. No class is the null class.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop.attention import as_convolution, from_heads_first
from diffusion_lab.interop.imported import Imported, Options
from diffusion_lab.interop.openai_files import Recipe, recipe_for
from diffusion_lab.interop.openai_layout import NAMES, ends, has_scale_shift, middle, stages, width
from diffusion_lab.interop.run_overrides import data_overrides, label_overrides, variance_overrides, without_given
from diffusion_lab.interop.tensors import ForeignTensors, Transform, converted
from diffusion_lab.interop.unet_layout import Block, UNetLayout, layer, unet_plan


def recognizes(names: set[str]) -> bool:
    """Return whether a file with these tensors is a U-Net of this layout."""
    return "input_blocks.0.0.weight" in names and any(name.startswith("output_blocks.") for name in names)


def is_strided(names: set[str]) -> bool:
    """Return whether the resolution changes by strided convolutions, as in all files of improved-diffusion."""
    return any(name.startswith("input_blocks.") and name.endswith(".op.weight") for name in names)


def read(tensors: ForeignTensors, options: Options, *, rescaled: bool) -> Imported:
    """Return the network of a file.  rescaled: whether times are scaled by 1000 / T in a file with an unknown name.

    Raises UserError if the file has other tensors, or if it needs settings that are not given.
    """
    recipe = recipe_for(tensors.file, options, rescaled=rescaled)
    layout = UNetLayout(stages(tensors, "input_blocks"), middle(), stages(tensors, "output_blocks"))
    channels = _Channels.of(tensors)
    settings = _settings(tensors, _Levels.of(tensors, layout.up), channels, recipe)
    plan = unet_plan(layout, NAMES, tensors.__contains__, partial(attention_transform, tensors, recipe))
    plan |= ends(tensors) | layer("conv_out", "out.2")
    num_classes = settings["labels"]["num_classes"]
    if num_classes:
        plan |= layer("label_embedding", "label_emb", bias=False)
    weights = converted(plan, tensors, settings)
    overrides = _overrides(channels, num_classes, recipe, options)
    return Imported("train", settings, weights, overrides, conventions(recipe), recipe.step)


def attention_transform(tensors: ForeignTensors, recipe: Recipe, prefix: str) -> Transform | None:
    """Return the transform of the queries, keys and values of an attention block.

    Raises UserError if the heads do not divide its channels.
    """
    channels = tensors.sizes(f"{prefix}.norm.weight", 1)[0]
    heads = recipe.heads(channels)
    if channels % heads or (recipe.head_channels and channels % recipe.head_channels):
        name = "num_heads" if recipe.num_heads else "head_channels"
        raise UserError(
            f"{name} must divide the channels of the attention blocks in {tensors.file}, got "
            f"{recipe.num_heads or recipe.head_channels} for {channels} channels."
        )
    if recipe.attention_order == "new":
        return as_convolution
    return partial(_from_legacy, num_heads=heads)


def _from_legacy(tensor: Tensor, num_heads: int) -> Tensor:
    return from_heads_first(as_convolution(tensor), num_heads)


def conventions(recipe: Recipe) -> dict[str, Any]:
    """Return what the mapping depended on, for the provenance."""
    heads = {"num_heads": recipe.num_heads, "head_channels": recipe.head_channels}
    time = {"time": f"{recipe.time_scale:g} x step index", "sinusoids": "cosines first"}
    return {"attention_order": recipe.attention_order, **heads, **time, "norm_eps": 1e-5, "null_class": None}


@dataclass(frozen=True)
class _Levels:
    """Widths and depths of the levels, from the highest resolution down, and which levels have attention."""

    widths: list[int]
    depths: list[int]
    attends: list[bool]
    resizes_by_block: bool

    @classmethod
    def of(cls, tensors: ForeignTensors, up: list[list[Block]]) -> "_Levels":
        """Return the levels of a decoder: a level ends with a stage that has a second residual block, or a strided one.

        Raises UserError if the decoder has no complete level.
        """
        widths, depths, attends, count, resizes = list[int](), list[int](), list[bool](), 0, set[str]()
        for number, stage in enumerate(up, 1):
            count += 1
            kinds = [kind for kind, _ in stage]
            is_last = kinds[-1] == "up" or kinds.count("residual") > 1
            if is_last:
                resizes.add(kinds[-1])
            if is_last or number == len(up):
                widths.insert(0, width(tensors, stage[0][1]))
                depths.insert(0, count - 1)
                attends.insert(0, "attention" in kinds)
                count = 0
        if min(depths) < 1:
            raise UserError(f"{tensors.file} must have at least two blocks per level in output_blocks, got fewer.")
        return cls(widths, depths, attends, "up" not in resizes)


@dataclass(frozen=True)
class _Channels:
    """Channels of the noisy image, of the low-resolution image (0 if there is none) and of the output."""

    image: int
    low_resolution: int
    output: int

    @classmethod
    def of(cls, tensors: ForeignTensors) -> "_Channels":
        """Return the channels of a network: an upsampler takes two images of 1 or 3 channels, which it concatenates.

        Raises UserError unless the output has the channels of the image, or twice as many.
        """
        taken, output = tensors.sizes("input_blocks.0.0.weight", 4)[1], tensors.sizes("out.2.weight", 4)[0]
        is_upsampler = taken in (2, 6) and output in (taken // 2, taken)
        image = taken // 2 if is_upsampler else taken
        if output not in (image, 2 * image):
            raise UserError(
                f"{tensors.file}: out.2.weight must have {image} or {2 * image} output channels, got {output}."
            )
        return cls(image, taken - image, output)


def _settings(tensors: ForeignTensors, levels: _Levels, channels: _Channels, recipe: Recipe) -> dict[str, Any]:
    """Return the constructor settings of the `UNet`."""
    base = tensors.sizes("time_embed.0.weight", 2)[1]
    num_classes = tensors.sizes("label_emb.weight", 2)[0] if "label_emb.weight" in tensors else 0
    sides = [recipe.resolution // 2**level for level in range(len(levels.widths))]
    return {
        "_target_": "diffusion_lab.networks.UNet",
        "in_channels": channels.image,
        "out_channels": channels.output,
        "resolution": recipe.resolution,
        "channels": base,
        "channel_multipliers": multipliers(levels.widths, base),
        "num_blocks": levels.depths if len(set(levels.depths)) > 1 else levels.depths[0],
        "attention_resolutions": [side for side, attends in zip(sides, levels.attends, strict=True) if attends],
        "blocks": blocks(tensors, recipe, "residual" if levels.resizes_by_block else "strided_symmetric"),
        "labels": {"_target_": "diffusion_lab.networks.Labels", "num_classes": num_classes, "dropout": 0.0},
        "condition_channels": channels.low_resolution,
        "sinusoids": sinusoids(recipe),
    }


def multipliers(widths: list[int], base: int) -> list[int | float]:
    """Return the widths relative to the base width, as whole numbers where possible."""
    return [width // base if width % base == 0 else width / base for width in widths]


def blocks(tensors: ForeignTensors, recipe: Recipe, resize: str) -> dict[str, Any]:
    """Return the settings of `Blocks`."""
    return {
        "_target_": "diffusion_lab.networks.Blocks",
        "dropout": recipe.dropout,
        "num_groups": 32,
        "scale_shift": has_scale_shift(tensors),
        "resize": resize,
        "num_heads": recipe.num_heads,
        "head_channels": recipe.head_channels,
        "norm_eps": 1e-5,
    }


def sinusoids(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of `Sinusoids`."""
    return {"_target_": "diffusion_lab.networks.Sinusoids", "kind": "adm", "time_scale": recipe.time_scale}


def _overrides(channels: _Channels, num_classes: int, recipe: Recipe, options: Options) -> tuple[str, ...]:
    """Return the overrides of train that describe everything but the network.

    Raises UserError for an upsampler without the resolution of its low-resolution images.
    """
    size = {"resolution": recipe.resolution, "channels": channels.image, "num_classes": num_classes}
    overrides = data_overrides(recipe.data, **size) + schedule_overrides(recipe)
    overrides += label_overrides(num_classes, 0.0)
    overrides += variance_overrides(learned=channels.output > channels.image)
    overrides += ["sampler=ancestral", f"sampler.num_steps={min(250, recipe.num_timesteps)}", "ema=constant"]
    if channels.low_resolution:
        if recipe.low_resolution is None and "low_resolution.resolution" not in options.given:
            raise UserError(
                "low_resolution must be given (low_resolution=area low_resolution.resolution=64) for an upsampler, "
                "whose file does not contain the resolution of its low-resolution images, got no value."
            )
        overrides += ["low_resolution=area", f"low_resolution.resolution={recipe.low_resolution}"]
    return without_given(overrides, options.given)


def schedule_overrides(recipe: Recipe) -> list[str]:
    """Return the overrides of the schedule of a published file; none if the schedule was typed."""
    if recipe.schedule is None:
        return []
    return [f"schedule={recipe.schedule}", f"schedule.num_timesteps={recipe.num_timesteps}"]

"""Classifiers in the layout of openai/guided-diffusion (format adm): an encoder as in `openai_unet`, and a pooling.

`out.2.positional_embedding` has one column for the mean and one for each position, so that it determines the
resolution. The pooling has the order of queries, keys and values of this package.
"""

from functools import partial
from math import isqrt
from typing import Any

from torch import Tensor

from diffusion_lab.errors import UserError
from diffusion_lab.interop.imported import Imported, Options
from diffusion_lab.interop.openai_files import Recipe, recipe_for
from diffusion_lab.interop.openai_layout import NAMES, ends, middle, stages, width
from diffusion_lab.interop.openai_unet import (
    attention_transform,
    blocks,
    conventions,
    multipliers,
    schedule_overrides,
    sinusoids,
)
from diffusion_lab.interop.run_overrides import data_overrides, without_given
from diffusion_lab.interop.tensors import ForeignTensors, Part, Plan, converted
from diffusion_lab.interop.unet_layout import Block, UNetLayout, unet_plan


def recognizes(names: set[str]) -> bool:
    """Return whether a file with these tensors is a classifier of this layout."""
    return {"input_blocks.0.0.weight", "out.2.positional_embedding"} <= names


def read(tensors: ForeignTensors, options: Options) -> Imported:
    """Return the classifier of a file.

    Raises UserError if the file has other tensors, or if it needs settings that are not given.
    """
    levels = _levels(tensors)
    num_positions = tensors.sizes("out.2.positional_embedding", 2)[1] - 1
    if num_positions < 1 or isqrt(num_positions) ** 2 != num_positions:
        raise UserError(f"{tensors.file}: out.2.positional_embedding must have 1 + side^2 columns, got another shape.")
    recipe = recipe_for(tensors.file, options, rescaled=False, resolution=isqrt(num_positions) * 2 ** (len(levels) - 1))
    settings = _settings(tensors, levels, recipe)
    plan = unet_plan(
        UNetLayout([stage for level in levels for stage in level], middle(), []),
        NAMES,
        tensors.__contains__,
        partial(attention_transform, tensors, recipe),
    )
    weights = converted(plan | ends(tensors) | _pooling(), tensors, settings)
    size = {"resolution": recipe.resolution, "channels": settings["in_channels"]}
    overrides = data_overrides(recipe.data, **size, num_classes=settings["num_classes"]) + schedule_overrides(recipe)
    given = without_given(overrides, options.given)
    return Imported("train_classifier", settings, weights, given, conventions(recipe), recipe.step)


def _levels(tensors: ForeignTensors) -> list[list[list[Block]]]:
    """Return the stages of each level. All levels but the last end with a block that halves the resolution.

    Without a decoder, the depth of a level is known from the last one, whose blocks are followed by attention: the
    block that halves the resolution before it is not.
    Raises UserError if no number of blocks per level fits.
    """
    all_stages = stages(tensors, "input_blocks")
    depth = next((n for n, stage in enumerate(reversed(all_stages)) if len(stage) == 1), len(all_stages))
    if depth < 1 or (len(all_stages) + 1) % (depth + 1):
        raise UserError(
            f"{tensors.file} must have attention in the last level and the same number of blocks in each level of "
            f"input_blocks, got {len(all_stages)} stages, of which the last {depth} have attention."
        )
    return [all_stages[k : k + depth + 1] for k in range(0, len(all_stages), depth + 1)]


def _settings(tensors: ForeignTensors, levels: list[list[list[Block]]], recipe: Recipe) -> dict[str, Any]:
    """Return the constructor settings of the `HalfUNet`."""
    base = tensors.sizes("time_embed.0.weight", 2)[1]
    depth = len(levels[-1])
    attends = [any(kind == "attention" for stage in level for kind, _ in stage) for level in levels]
    is_strided = any(kind == "down" for level in levels for kind, _ in level[-1])
    widths = [width(tensors, level[0][0][1]) for level in levels]
    return {
        "_target_": "diffusion_lab.networks.HalfUNet",
        "in_channels": tensors.sizes("input_blocks.0.0.weight", 4)[1],
        "num_classes": tensors.sizes("out.2.c_proj.weight", 3)[0],
        "resolution": recipe.resolution,
        "channels": base,
        "channel_multipliers": multipliers(widths, base),
        "num_blocks": depth,
        "attention_resolutions": [recipe.resolution // 2**i for i, has in enumerate(attends) if has],
        "blocks": blocks(tensors, recipe, "strided_symmetric" if is_strided else "residual"),
        "sinusoids": sinusoids(recipe),
    }


def _pooling() -> Plan:
    """Return the plan of the attention pooling, whose layers are one-dimensional convolutions in the file."""
    plan: Plan = {"pool.positions": Part(("out.2.positional_embedding",), _positions)}
    for own, foreign in (("qkv", "qkv_proj"), ("out", "c_proj")):
        plan[f"pool.{own}.weight"] = Part((f"out.2.{foreign}.weight",), _matrix)
        plan[f"pool.{own}.bias"] = Part((f"out.2.{foreign}.bias",))
    return plan


def _positions(tensor: Tensor) -> Tensor:
    return tensor.mT[None]  # [channels, 1 + positions] -> [1, 1 + positions, channels]


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.squeeze(2)

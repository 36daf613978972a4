"""The blocks in a file of improved-diffusion or guided-diffusion, from the names of its tensors."""

import re
from collections import defaultdict

from diffusion_lab.interop.tensors import ForeignTensors, Plan
from diffusion_lab.interop.unet_layout import Block, Names, layer

RESIDUAL: Names = {
    "norm_in": ("in_layers.0",),
    "conv_in": ("in_layers.2",),
    "embedding": ("emb_layers.1",),
    "norm_out": ("out_layers.0",),
    "conv_out": ("out_layers.3",),
    "skip": ("skip_connection",),
}
NAMES: dict[str, Names] = {
    "residual": RESIDUAL,
    "attention": {"norm": ("norm",), "qkv": ("qkv",), "out": ("proj_out",)},
    "down": {"conv": ("op",)},
    "up": {"conv": ("conv",)},
}
"""Names of the layers of each kind of block."""

_MARKS = {"in_layers.2.weight": "residual", "qkv.weight": "attention", "op.weight": "down", "conv.weight": "up"}
"""Tensor that only one kind of block has -> kind."""


def stages(tensors: ForeignTensors, group: str) -> list[list[Block]]:
    """Return the blocks of each stage of input_blocks or output_blocks, in order, without the first convolution.

    Raises UserError if a stage or a block is missing.
    """
    found: dict[int, dict[int, Block]] = defaultdict(dict)
    for name in tensors:
        match = re.fullmatch(rf"({group}\.(\d{{1,4}})\.(\d{{1,2}}))\.(.+)", name)
        if match and match[4] in _MARKS:
            found[int(match[2])][int(match[3])] = (_MARKS[match[4]], match[1])
    first = 1 if group == "input_blocks" else 0
    missing = [f"{group}.{i}" for i in range(first, max(found, default=first) + 1) if i not in found]
    missing += [f"{group}.{i}.{j}" for i, stage in found.items() for j in range(max(stage) + 1) if j not in stage]
    if missing or not found:
        tensors.refuse("has no complete", missing or [f"{group}.{first}"])
    return [[block for _, block in sorted(found[i].items())] for i in sorted(found)]


def middle() -> list[Block]:
    """Return the blocks of the middle, which are the same in all networks."""
    return [(kind, f"middle_block.{i}") for i, kind in enumerate(("residual", "attention", "residual"))]


def ends(tensors: ForeignTensors) -> Plan:
    """Return the plan of the layers that every network of this layout has."""
    plan = layer("time_embedding.layers.0", "time_embed.0") | layer("time_embedding.layers.2", "time_embed.2")
    return plan | layer("conv_in", "input_blocks.0.0") | layer("norm_out", "out.0")


def width(tensors: ForeignTensors, prefix: str) -> int:
    """Return the number of output channels of a residual block."""
    return tensors.sizes(f"{prefix}.out_layers.3.weight", 4)[0]


def has_scale_shift(tensors: ForeignTensors) -> bool:
    """Return whether the embedding also scales the activations, from the size of its layer in the middle."""
    return tensors.sizes("middle_block.0.emb_layers.1.weight", 2)[0] == 2 * width(tensors, "middle_block.0")

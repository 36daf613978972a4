"""The blocks of a foreign U-Net in the order of `UNet`, and the plan that assigns its tensors to those of a `UNet`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diffusion_lab.interop.attention import as_convolution
from diffusion_lab.interop.tensors import Part, Plan, Transform

Block = tuple[str, str]
"""Kind of a block ("residual", "attention", "down" or "up"), and the start of the names of its tensors in the file."""

Names = Mapping[str, tuple[str, ...]]
"""Name of a layer of a block of `UNet` -> names of the layers in the file from which it is computed."""


@dataclass(frozen=True)
class UNetLayout:
    """Blocks of the stages of the encoder, of the middle, and of the stages of the decoder, see `UNet`."""

    down: list[list[Block]]
    middle: list[Block]
    up: list[list[Block]]

    def placed(self) -> list[tuple[str, Block]]:
        """Return all blocks with the start of the names of their tensors in a `UNet`."""
        stages = [*((f"down.{i}", stage) for i, stage in enumerate(self.down)), ("middle", self.middle)]
        stages += [(f"up.{i}", stage) for i, stage in enumerate(self.up)]
        return [(f"{own}.{j}", block) for own, stage in stages for j, block in enumerate(stage)]


def layer(own: str, *foreign: str, transform: Transform | None = None, bias: bool = True) -> Plan:
    """Return the plan of the weight and the bias of a layer."""
    parts = ("weight", "bias") if bias else ("weight",)
    return {f"{own}.{part}": Part(tuple(f"{name}.{part}" for name in foreign), transform) for part in parts}


def unet_plan(
    layout: UNetLayout,
    names: Mapping[str, Names],
    has: Callable[[str], bool],
    attention: Callable[[str], Transform | None],
) -> Plan:
    """Return the plan of all blocks.

    names: names of the layers of each kind of block.  has: whether the file has a tensor, for optional layers.
    attention: function that returns the transform of the queries, keys and values of the block with a prefix.
    """
    plan: Plan = {}
    for own, (kind, prefix) in layout.placed():
        for name, foreign in names[kind].items():
            sources = [f"{prefix}.{source}" for source in foreign]
            if name == "skip" and not has(f"{sources[0]}.weight"):
                continue  # only blocks that change the number of channels have this layer
            transform = attention(prefix) if name == "qkv" else as_convolution if kind == "attention" else None
            plan |= layer(f"{own}.{name}", *sources, transform=transform)
    return plan

"""The settings of a `UNet` of a run, and the reasons why `UNet2DModel` of `diffusers` has no counterpart of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lab.errors import UserError
from diffusion_lab.networks import Blocks, DiT, DiTVariant, Labels, Network, Sinusoids, UNet
from diffusion_lab.networks.blocks import Levels

OTHER_FORMAT = "format=safetensors exports every network"


def labels_node(num_classes: int, dropout: float = 0.0) -> dict[str, Any]:
    """Return the config node of `Labels`."""
    return {"_target_": "diffusion_lab.networks.Labels", "num_classes": num_classes, "dropout": dropout}


def built(node: Mapping[str, Any] | None, kind: type[Any]) -> Any:
    """Return an object of a dataclass from its config node, or with its defaults for None."""
    return kind(**{key: value for key, value in (node or {}).items() if key != "_target_"})


def build_on_meta(node: Mapping[str, Any]) -> Network:
    """Return the `UNet` or `DiT` of a config node, without memory for its weights.

    Raises UserError for settings that its constructor rejects.
    """
    kinds = {kind.__name__: kind for kind in (Blocks, DiT, DiTVariant, Labels, Sinusoids, UNet)}

    def build(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kind: Any = kinds[value["_target_"].rpartition(".")[2]]
        return kind(**{key: build(each) for key, each in value.items() if key != "_target_"})

    try:
        with torch.device("meta"):
            network: Network = build(node)
    except ValueError as error:
        raise UserError(f"the network of the config cannot be built: {error}") from error
    return network


def require(is_exportable: bool, setting: str, accepted: str, value: Any) -> None:
    """Raise UserError that names the setting of a run that stands in the way of format=diffusers."""
    if not is_exportable:
        raise UserError(
            f"{setting} must be {accepted} for format=diffusers (`diffusers` has no such network otherwise), got "
            f"{value}; {OTHER_FORMAT}."
        )


@dataclass(frozen=True)
class OwnUNet:
    """Settings of a `UNet`: those of its config node, and the sizes of its levels."""

    in_channels: int
    resolution: int
    channels: int
    patch_size: int
    attend_once_on_way_up: bool
    condition_channels: int
    blocks: Blocks
    labels: Labels
    sinusoids: Sinusoids
    levels: Levels

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "OwnUNet":
        """Return the settings in a config node of `UNet`, with the defaults of its constructor."""
        channels, patch_size = node.get("channels", 128), node.get("patch_size", 1)
        levels = Levels.of(
            node["resolution"],
            channels=channels,
            channel_multipliers=node.get("channel_multipliers", (1, 2, 2, 2)),
            num_blocks=node.get("num_blocks", 2),
            attention_resolutions=node.get("attention_resolutions"),
            default_attention=(16,),
            patch_size=patch_size,
        )
        return cls(
            in_channels=node["in_channels"],
            resolution=node["resolution"],
            channels=channels,
            patch_size=patch_size,
            attend_once_on_way_up=node.get("attend_once_on_way_up", False),
            condition_channels=node.get("condition_channels", 0),
            blocks=built(node.get("blocks"), Blocks),
            labels=built(node.get("labels"), Labels),
            sinusoids=built(node.get("sinusoids"), Sinusoids),
            levels=levels,
        )

    @property
    def attends(self) -> list[bool]:
        """Whether the blocks of each level are followed by attention."""
        return [side in self.levels.attention_resolutions for side in self.levels.sides]

    def require_exportable(self) -> None:
        """Raise UserError that names the setting for which no UNet2DModel exists."""
        blocks, sinusoids, depths = self.blocks, self.sinusoids, self.levels.depths
        require(self.patch_size == 1, "model.patch_size", "1", self.patch_size)
        is_stem = self.levels.widths[0] == self.channels
        first = self.levels.widths[0] / self.channels
        require(is_stem, "the first number of model.channel_multipliers", "1", first)
        require(len(set(depths)) == 1, "model.num_blocks", "the same at all levels", list(depths))
        once = self.attend_once_on_way_up and any(self.attends)
        require(not once, "model.attend_once_on_way_up", "false", "true")
        channels = self.condition_channels
        require(channels == 0, "model.condition_channels", "0", f"{channels} channels of a condition image")
        require(not blocks.rescale, "model.blocks.rescale", "false", "true")
        resizes = ("strided", "strided_symmetric", "residual")
        require(blocks.resize in resizes, "model.blocks.resize", " or ".join(resizes), blocks.resize)
        is_normalized = blocks.middle_norm or blocks.scale_shift
        require(is_normalized, "model.blocks.middle_norm", "true for blocks.scale_shift=false", "false")
        require(sinusoids.time_scale == 1, "model.sinusoids.time_scale", "1", sinusoids.time_scale)
        require(sinusoids.max_period == 10_000, "model.sinusoids.max_period", "10000", sinusoids.max_period)
        self.head_channels()

    def head_channels(self) -> int | None:
        """Return the channels of an attention head, None for a single head.

        Raises UserError if levels with attention have heads of different sizes.
        """
        if (self.blocks.num_heads or 1) == 1:
            return self.blocks.head_channels
        attended = {width for width, attend in zip(self.levels.widths, self.attends, strict=True) if attend}
        sizes = {width // self.blocks.heads(width) for width in (*attended, self.levels.widths[-1])}
        accepted = "null or 1 if levels with attention differ in channels (blocks.head_channels sets equal heads)"
        require(len(sizes) == 1, "model.blocks.num_heads", accepted, self.blocks.num_heads)
        return sizes.pop()

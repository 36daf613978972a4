"""A network of other code as this package describes it: constructor settings, overrides of a command, and weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusion_lab import networks
from diffusion_lab.errors import UserError

MODELS = {"UNet": "unet_adm", "HalfUNet": "half_unet", "DiT": "dit_s"}
"""Choice of the config group `model` with all settings of a class, whose values an import replaces."""


@dataclass(frozen=True)
class Options:
    """What the command line states about a foreign checkpoint that its file does not contain.

    num_heads, head_channels: number of attention heads, or channels of a head.
    attention_order: order of the rows of an attention layer, `legacy` (by head) or `new`; see `openai_unet`.
    resolution: side length of the images in pixels.  autoencoder: folder of the autoencoder of a latent network.
    given: keys of the overrides of train that were typed.
    num_timesteps: number of steps of the schedule that was typed, or of the default schedule.
    """

    num_heads: int | None = None
    head_channels: int | None = None
    attention_order: Literal["legacy", "new"] | None = None
    resolution: int | None = None
    autoencoder: str | None = None
    given: frozenset[str] = frozenset()
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_channels", "resolution"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UserError(f"{name} must be a whole number of at least 1 or null, got {value}.")
        if self.num_heads is not None and self.head_channels is not None:
            raise UserError(
                f"num_heads must be null if head_channels is given, got num_heads={self.num_heads} and "
                f"head_channels={self.head_channels}."
            )
        if self.attention_order not in (None, "legacy", "new"):
            raise UserError(f"attention_order must be legacy, new or null, got {self.attention_order}.")


@dataclass(frozen=True)
class Imported:
    """A network that was read from a foreign checkpoint.

    command: command whose runs have such a network.
    network: arguments of the constructor, with `_target_`, plain values only.
    weights: state_dict of the network, float32.
    overrides: overrides of the command that describe everything but the network, such as schedule=cosine.
    conventions: what the mapping of the names and the layouts depended on, for the provenance.
    step: number of training steps, 0 if it is not known.
    nodes: config nodes with plain values that replace those which the overrides compose.
    class_names: names of all classes; () if they are not known.
    """

    command: Literal["train", "train_classifier"]
    network: dict[str, Any]
    weights: dict[str, Tensor]
    overrides: tuple[str, ...]
    conventions: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    nodes: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    def network_overrides(self) -> list[str]:
        """Return the overrides that give the config group `model` the settings of the network.

        The labels are left out, because they are the config group `conditioning`. A node `model` needs no overrides.
        """
        if "model" in self.nodes:
            return []
        kind = self.network["_target_"].rpartition(".")[2]
        values = _flat({key: value for key, value in self.network.items() if key != "labels"})
        return [f"model={MODELS[kind]}", *(f"model.{key}={_text(value)}" for key, value in values.items())]


def build_network(settings: Mapping[str, Any]) -> nn.Module:
    """Build the network of plain settings, whose nested dicts have the key `_target_`.

    Raises ValueError for settings that a constructor does not accept.
    """
    arguments = {
        key: build_network(v) if isinstance(v, dict) else v for key, v in settings.items() if key != "_target_"
    }
    network: nn.Module = getattr(networks, settings["_target_"].rpartition(".")[2])(**arguments)
    return network


def network_on_meta(settings: Mapping[str, Any], file: Path) -> nn.Module:
    """Build a network without memory for its weights.  Raises UserError if its settings do not fit together."""
    try:
        with torch.device("meta"):
            return build_network(settings)
    except ValueError as error:
        raise UserError(f"{file} describes a network that cannot be built: {error}") from error


def _flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values of nested dicts by their keys, joined with dots; keys `_target_` are left out."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{path}{key}.")
        elif key != "_target_":
            values[f"{path}{key}"] = value
    return values


def _text(value: Any) -> str:
    """Return a plain value in Hydra's override grammar."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_text, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)

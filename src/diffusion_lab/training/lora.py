"""Low-rank adapters (LoRA, Hu et al. 2022), which `peft` adds to the layers of a network."""

import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.checkpoint_files import DamagedCheckpointError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.training.freezing import matching

KEY = "lora_scale"
"""Key of a checkpoint under which alpha / rank is stored, if its network has adapters."""

BASE = ".base_layer."
"""Part of the name of a parameter of a layer with an adapter, between the layer and its parameter."""

DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""Ends of the names of the two matrices of an adapter: A, of shape [rank, ...], and B, of shape [..., rank]."""

FOLDER, WEIGHTS, CONFIG = "lora", "adapter_model.safetensors", "adapter_config.json"
"""Folder in the folder of the checkpoints, and its files: the names of `peft`."""

INSTALL = "pip install 'diffusion-lab-framework[lora]' (in a clone: pip install -e '.[lora]')"


@dataclass(frozen=True)
class LoRA:
    """Adapters W + alpha / rank B A of frozen weights W (Hu et al. 2022, eq. 3).  A and B are trained; B is 0 at first.

    rank: rank of B A.  alpha: numerator of the factor; None is `rank`, so that the factor is 1.
    layers: glob patterns of the names of linear and convolution layers; None selects all linear layers and 1 x 1
        convolutions, among them the queries, keys and values of attention.
    also_train: glob patterns of the names of parameters that are trained without an adapter.

    Raises ValueError unless rank is a whole number of at least 1 and alpha is above 0.
    """

    rank: int
    alpha: float | None = None
    layers: tuple[str, ...] | None = None
    also_train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"lora.rank must be a whole number of at least 1, or null, got {self.rank}.")
        alpha = self.alpha
        if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha > 0):
            raise ValueError(f"lora.alpha must be above 0, or null, got {alpha}.")

    @property
    def scale(self) -> float:
        """Factor on B A."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    def inject(self, network: nn.Module) -> None:
        """Add adapters to the layers of a network, and freeze all other parameters except `also_train`.

        The names of modules do not change, but the weight of a layer with an adapter is named base_layer.weight.
        Raises ValueError if peft is not installed, if a glob pattern matches no layer or no parameter, if no layer
        remains, and if the rank is above that of all weights.
        """
        require_peft()
        from peft import LoraConfig, inject_adapter_in_model

        trained = set(matching([name for name, _ in network.named_parameters()], self.also_train, "lora.also_train"))
        layers = [name for name in self._layers(network) if f"{name}.weight" not in trained]
        if not layers:
            given = f"lora.layers={_shown(self.layers)} and lora.also_train={_shown(self.also_train)}"
            raise ValueError(
                f"lora.layers must match layers that lora.also_train does not, got none in {type(network).__name__} "
                f"for {given}."
            )
        self._require_rank(network, layers)
        config = LoraConfig(r=self.rank, lora_alpha=self.scale * self.rank, target_modules=_either(layers))
        inject_adapter_in_model(config, network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trained or name.endswith((DOWN, UP)))

    def _require_rank(self, network: nn.Module, layers: Sequence[str]) -> None:
        """Raise ValueError if the rank is above the largest one that the weight of any of the layers can have."""
        weights = [network.get_parameter(f"{name}.weight") for name in layers]
        largest = max(min(len(weight), weight.numel() // len(weight)) for weight in weights)
        if self.rank > largest:
            raise ValueError(
                f"lora.rank must be at most {largest}, the largest rank of a weight with an adapter, got {self.rank}."
            )

    def _layers(self, network: nn.Module) -> list[str]:
        found = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and _is_plain(m)}
        if self.layers is None:
            return [n for n, m in found.items() if isinstance(m, nn.Linear) or m.kernel_size == (1, 1)]
        return matching(list(found), self.layers, "lora.layers")

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the adapters of a network, and the parameters `also_train`, as `peft` saves them.

        folder: new or existing folder, see FOLDER.
        """
        from safetensors.torch import save

        names = [name for name, _ in network.named_parameters()]
        chosen = {*matching(names, self.also_train, "lora.also_train"), *(n for n in names if n.endswith((DOWN, UP)))}
        state = {name: tensor for name, tensor in network.state_dict().items() if name in chosen}
        tensors = {f"base_model.model.{n.replace('.default.', '.')}": t.cpu().contiguous() for n, t in state.items()}
        layers = sorted(name.removesuffix(DOWN) for name in state if name.endswith(DOWN))
        config = {"peft_type": "LORA", "r": self.rank, "lora_alpha": self.scale * self.rank}
        config |= {"target_modules": _either(layers), "bias": "none", "inference_mode": True}
        with atomic_file(folder / WEIGHTS) as partial:
            partial.write_bytes(save(tensors, {"format": "pt"}))
        with atomic_file(folder / CONFIG) as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")


def require_peft() -> None:
    """Raise ValueError unless the packages are installed that train adapters."""
    if missing := [name for name in ("peft", "safetensors") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"`lora` requires the package {missing[0]}; {INSTALL} installs it.")


def merged_checkpoint(content: dict[str, Any], path: object) -> dict[str, Any]:
    """Return the content of a checkpoint whose adapters are added to the weights of their layers.

    path: path of the file, for the error message.  Raises DamagedCheckpointError for adapters that fit no weights.
    """
    if KEY not in content:
        return content
    try:
        state = merged(content["state_dict"], content[KEY])
    except (ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {error}.") from error
    return {name: value for name, value in content.items() if name != KEY} | {"state_dict": state}


def merged(state: Mapping[str, Any], scale: Any) -> dict[str, Any]:
    """Return a state_dict with the weight W + scale B A of each layer with an adapter, under its name without adapter.

    Raises ValueError for a scale that is no finite number, and for matrices that do not fit their weight.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"the scale of its adapters must be a finite number, got {str(scale)[:50]}")
    result = dict[str, Any]()
    for name, value in state.items():
        layer, base, parameter = name.rpartition(BASE)
        if base and parameter == "weight" and f"{layer}{DOWN}" in state:
            value = _merged_weight(name, value, state[f"{layer}{DOWN}"], state[f"{layer}{UP}"], scale)
        if not name.endswith((DOWN, UP)):
            result[f"{layer}.{parameter}" if base else name] = value
    return result


def _merged_weight(name: str, weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return W + scale B A.

    weight: [out, in] or [out, in, k, k].  down: A, [rank, in] or [rank, in, k, k].  up: B, [out, rank, ...].
    """
    if any(tensor.nbytes > tensor.untyped_storage().nbytes() for tensor in (weight, down, up)):
        raise ValueError(f"the adapter of {name} has more values than the file")
    a, b = down.flatten(1), up.flatten(1)
    if a.shape[0] != b.shape[1] or (b.shape[0], *down.shape[1:]) != tuple(weight.shape):
        raise ValueError(f"the adapter of {name} has other shapes than the weight")
    precise = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(precise) + scale * (b.to(precise) @ a.to(precise)).view_as(weight)).to(weight.dtype)


def _is_plain(layer: nn.Module) -> bool:
    """Return whether peft can adapt a layer without restrictions on its rank."""
    return not isinstance(layer, nn.Conv2d) or layer.groups == 1


def _shown(globs: Sequence[str] | None) -> str:
    return "null" if globs is None else f"[{','.join(globs)}]"


def _either(names: Sequence[str]) -> str:
    """Return a regular expression that matches exactly these names."""
    return "|".join(map(re.escape, names))


def has_adapters(network: nn.Module) -> bool:
    """Return whether a network has adapters."""
    return any(name.endswith(DOWN) for name, _ in network.named_parameters())

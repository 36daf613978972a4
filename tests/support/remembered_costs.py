"""Costs of networks that several tests ask for: counting the operations of a small network takes 0.2 s."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lab.runs.cost import measuring, sampling, training, training_line
from diffusion_lab.runs.cost.operations import Operations, Rates, count_operations, measure_rates


def remember_costs(folder: Path) -> None:
    """Let commands of this process count the operations of equal networks, and measure the machine, once per folder.

    The functions themselves are not replaced, so that their own tests call them.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def count(network: nn.Module, inputs: tuple[Any, ...], batch_size: int) -> Operations:
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        key = f"{network} {_settings(network)} {shapes} {list(map(_shapes, inputs))} {batch_size}"
        return Operations(*_remembered(folder, key, lambda: astuple(count_operations(network, inputs, batch_size))))

    def measure(device: torch.device, precision: str) -> Rates:
        key = f"{device} {precision} {torch.get_num_threads()}"
        return Rates(*_remembered(folder, key, lambda: astuple(measure_rates(device, precision))))

    for module in (measuring, sampling, training, training_line):
        for name, function in {"count_operations": count, "measure_rates": measure}.items():
            if hasattr(module, name):
                setattr(module, name, function)


def _settings(network: nn.Module) -> list[dict[str, Any]]:
    """Return the attributes of all modules that are plain values, some of which their text does not show."""
    return [
        {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple)}
        for module in network.modules()
    ]


def _shapes(part: Any) -> Any:
    if isinstance(part, Tensor):
        return tuple(part.shape)
    return {name: tuple(tensor.shape) for name, tensor in vars(part).items() if tensor is not None}


def _remembered(folder: Path, key: str, compute: Callable[[], tuple[float, ...]]) -> list[Any]:
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(compute()))
        temporary.replace(path)  # other processes see the complete file or none
    values: list[Any] = json.loads(path.read_text())
    return values

"""Original networks that can be loaded in this process, for `verify against=NAME`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.interop.witness import Witness
from diffusion_lab.process import TableSchedule

Original = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A network of other code as a function of (x [B, C, H, W], time [B], label [B] or None), float32."""

ORIGINALS: dict[str, Callable[[Path], Original]] = {}
"""Name of a library -> function that loads the network of an imported file or folder."""


def computed_witness(original: Original, module: Any, *, num_images: int = 4, seed: int = 0) -> Witness:
    """Return a witness of an original network, without a trajectory.

    module: module of the imported run, which defines the shapes, the classes and the times of the inputs.
    """
    generator, network, schedule = torch.Generator().manual_seed(seed), module.network, module.process.schedule
    shape = (num_images, network.in_channels, network.resolution, network.resolution)
    x = torch.randn(shape, generator=generator)
    last = schedule.num_timesteps - 1 if isinstance(schedule, TableSchedule) else 1
    time = torch.linspace(0, last, num_images).round()
    num_classes = network.labels.num_classes
    label = torch.randint(num_classes, (num_images,), generator=generator) if num_classes else None
    with torch.no_grad():
        return Witness(x, time, original(x, time, label), label)

"""Networks of a small cascade with random weights: from 4 x 4 to 8 x 8 pixels."""

from typing import Any

import torch
from torch import nn

from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.networks import Labels
from diffusion_lab.training.diffusion_module import DiffusionModule
from support.small_runs import small_module

LOW = LowResolution(4, max_noise=0.5)
CHANNELS: dict[str, Any] = {"condition_channels": 1, "num_augmentation_channels": 1}


def base(side: int = 4, labels: Labels | None = None) -> DiffusionModule:
    """Return a network for images of side `side` with random weights."""
    module = small_module(labels)
    module.network.resolution = module.ema.network.resolution = side  # type: ignore[assignment]
    return with_random_weights(module)


def with_random_weights(module: DiffusionModule) -> DiffusionModule:
    torch.manual_seed(0)
    for parameter in module.ema.network.parameters():
        nn.init.normal_(parameter, std=0.2)
    module.eval()
    return module


def upsampler(labels: Labels | None = None) -> DiffusionModule:
    return with_random_weights(small_module(labels, **CHANNELS))

"""Fake feature networks for tests of metrics and evaluation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.features import Features
from diffusion_lab.networks import Condition


class StandIn(Features):
    """Features that are the levels of the first pixels of an image, so that all sums of them are exact."""

    name = "stand_in"
    num_features = 12
    channels = (1, 3)
    outputs: tuple[str, ...] = ("pooled", "logits")
    resize = "none"
    weights_sha256 = "0" * 64

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        pooled = pixels.flatten(1)[:, : self.num_features].float()
        return {"pooled": pooled, "logits": pooled[:, :5] / 64}


class Spatial(StandIn):
    """Additionally has the levels of all pixels as spatial features."""

    outputs = ("pooled", "logits", "spatial")

    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        return {**super().extract(pixels), "spatial": pixels.flatten(1).float()}


class StandInForCLIP(StandIn):
    name = "clip"


@dataclass(frozen=True)
class Brightness:
    """A per-image metric: the mean of an image, and the mean of its noise."""

    name = "brightness"
    num_terms = 2

    def __call__(self, denoiser: Any, x_0: Tensor, condition: Condition, noise: Any) -> Tensor:
        return torch.stack([x_0.mean(dim=(1, 2, 3)), noise.draw().mean(dim=(1, 2, 3))], dim=1)

"""Base class of feature networks: uint8 images -> named float32 outputs."""

from abc import ABC, abstractmethod
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn


class FeaturesUnavailableError(FileNotFoundError):
    """Missing weights or libraries of a feature network.  The message contains what is missing and a remedy."""


class Outputs(dict[str, Tensor]):
    """Outputs of a feature network by name.  KeyError for another name lists the names."""

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(f"the outputs of the feature network are {', '.join(self)}, got {name!r}")


class Features(nn.Module, ABC):
    """Frozen network in evaluation mode: uint8 images [B, C, H, W] -> named float32 outputs.

    num_features: number of pooled features; None if it depends on the images.
    outputs: names of the outputs, among "pooled" [B, num_features], which most metrics compare; "logits"
        [B, number of classes]; and "spatial" [B, S], features that preserve spatial positions.
    channels: accepted numbers of image channels.  resize: description of how images are resized for the network.
    num_classes: number of classes if logit k is the logit of the data set's label k; None for other logits.
    weights_file, weights_sha256: the weights file and its SHA-256; None for an untrained network.
    """

    name: str
    num_features: int | None
    channels: tuple[int, ...]
    outputs: tuple[str, ...] = ("pooled",)
    resize: str
    weights_file: Path | None = None
    weights_sha256: str | None = None
    num_classes: int | None = None

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    @abstractmethod
    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return all outputs for uint8 images [B, C, H, W], by the names in `outputs`."""

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        if pixels.dtype != torch.uint8:
            raise ValueError(f"`pixels` must be uint8, got {pixels.dtype}; quantize images with to_uint8 first.")
        if pixels.shape[1] not in self.channels:
            accepted = " or ".join(map(str, self.channels))
            raise ValueError(f"`pixels` must have {accepted} channels for {self.name}, got {pixels.shape[1]}.")
        # Half precision changes features by half a percent. TF32, cuDNN's default for float32, changes them by 0.05%.
        with (
            torch.autocast(pixels.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            return Outputs({name: output.float() for name, output in self.extract(pixels).items()})

    def train(self, mode: bool = True) -> "Features":
        return super().train(False)

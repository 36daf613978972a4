"""What all networks of features share: bytes in, named outputs, float32."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class FeaturesUnavailableError(FileNotFoundError):
    """A feature network's weights are neither here nor within reach; the message says where they were looked for."""


class Features(nn.Module, ABC):
    """uint8 images [B, C, H, W] -> named outputs, float32.  Frozen, always in evaluation mode.

    outputs: which of these it has: "pooled" [B, num_features], what distances are taken over; "logits"
    [B, num_classes]; "spatial" [B, S], features that keep where things are.
    channels: of images that it takes.  resize: its rule of bringing images to its own size, in words.
    num_classes: of the data's own classes that its logits stand for, in their order; None for logits of other classes.
    weights_sha256: of the file of its weights; None for an untrained network.
    """

    name: str
    num_features: int
    channels: tuple[int, ...]
    outputs: tuple[str, ...] = ("pooled",)
    resize: str
    weights_sha256: str | None = None
    num_classes: int | None = None

    @abstractmethod
    def extract(self, pixels: Tensor) -> dict[str, Tensor]:
        """All outputs of uint8 images, by name."""

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        if pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be uint8, got {pixels.dtype}: quantise images with to_uint8 first.")
        if pixels.shape[1] not in self.channels:
            raise ValueError(f"{self.name} takes images of {self.channels} channels, got {pixels.shape[1]}.")
        # Half precision moves features by half a percent, and TF32, cuDNN's default for float32, by a tenth of that.
        with (
            torch.autocast(pixels.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            return {name: output.float() for name, output in self.extract(pixels).items()}

    def train(self, mode: bool = True) -> "Features":
        return super().train(False)

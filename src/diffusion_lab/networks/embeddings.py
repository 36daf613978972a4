"""What networks are told, made into numbers: time, labels, a low-resolution image."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.networks.condition import Condition, Labels


@dataclass(frozen=True)
class Sinusoids:
    """Sines and cosines of time at geometric frequencies from 1 (after Vaswani et al. 2017).

    kind: `ddpm` has sines first, and 1 / max_period as its last frequency (Ho et al. 2020, code); `adm` has cosines
        first, and stops one frequency short of it (Dhariwal & Nichol 2021, code; so did Peebles & Xie 2023).
    time_scale: of the time before all else; 1000 / T for networks of Nichol & Dhariwal (2021).
    """

    kind: Literal["ddpm", "adm"] = "ddpm"
    time_scale: float = 1.0
    max_period: float = 10_000.0

    def __post_init__(self) -> None:
        if self.kind not in ("ddpm", "adm"):
            raise ValueError(f"kind must be ddpm or adm, got {self.kind}.")
        for name in ("time_scale", "max_period"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")

    def __call__(self, time: Tensor, channels: int) -> Tensor:
        """time: [B].  Returns [B, channels], float32; channels must be even and at least 4."""
        half = channels // 2
        steps = half - 1 if self.kind == "ddpm" else half
        exponent = torch.arange(half, dtype=torch.float32, device=time.device) / steps
        frequency = torch.exp(-math.log(self.max_period) * exponent)
        scaled = time.float() if self.time_scale == 1 else self.time_scale * time.float()
        angle = scaled[:, None] * frequency  # [B, half]
        parts = [angle.sin(), angle.cos()] if self.kind == "ddpm" else [angle.cos(), angle.sin()]
        return torch.cat(parts, dim=1)  # [B, channels]


class TimeEmbedding(nn.Module):
    """Sinusoids through two linear layers: [B] -> [B, embedding_channels].

    num_augmentation_channels: numbers that are told of an image's augmentation; a linear map without bias adds them to
        the sinusoids (Karras et al. 2022, code), so that 0 says nothing.
    """

    def __init__(
        self,
        channels: int,
        embedding_channels: int,
        num_augmentation_channels: int = 0,
        sinusoids: Sinusoids | None = None,
    ) -> None:
        super().__init__()
        if channels < 4 or channels % 2:
            raise ValueError(f"channels must be even and at least 4 to embed the time, got {channels}.")
        if num_augmentation_channels < 0:
            raise ValueError(f"num_augmentation_channels must be at least 0, got {num_augmentation_channels}.")
        self.channels, self.num_augmentation_channels = channels, num_augmentation_channels
        self.sinusoids = sinusoids or Sinusoids()
        self.layers = nn.Sequential(
            nn.Linear(channels, embedding_channels), nn.SiLU(), nn.Linear(embedding_channels, embedding_channels)
        )
        if num_augmentation_channels:
            self.augmentation = nn.Linear(num_augmentation_channels, channels, bias=False)

    def forward(self, time: Tensor, augmentation: Tensor | None = None) -> Tensor:
        """time: [B].  augmentation: [B, num_augmentation_channels]; None is 0.  Returns [B, embedding_channels].

        Raises ValueError where the augmentation has another length.
        """
        embedding = self.sinusoids(time, self.channels).to(next(self.parameters()).dtype)
        if augmentation is not None:
            embedding = embedding + self._told(augmentation.to(embedding.dtype))
        result: Tensor = self.layers(embedding)
        return result

    def _told(self, augmentation: Tensor) -> Tensor:
        if augmentation.shape[1] != self.num_augmentation_channels or not self.num_augmentation_channels:
            raise ValueError(
                f"augmentation must be told in num_augmentation_channels={self.num_augmentation_channels} numbers an "
                f"image, got {augmentation.shape[1]}."
            )
        told: Tensor = self.augmentation(augmentation)
        return told


def require_label(label: Tensor | None, labels: Labels) -> None:
    """Raises ValueError unless labels are given exactly to a network that knows classes."""
    if (label is None) == bool(labels.num_classes):
        wanted = f"labels in 0..{labels.num_rows - 1}" if labels.num_classes else "no label"
        raise ValueError(f"label must be given to this network as {wanted}, got {label}.")


def beside_low_resolution(x_t: Tensor, condition: Condition, channels: int) -> Tensor:
    """The noisy image and, enlarged to its side, the low-resolution one (Saharia et al. 2021; Dhariwal & Nichol 2021).

    x_t: [B, C, H, W].  Returns [B, C + channels, H, W].
    Raises ValueError unless the condition has an image of so many channels; one of none where channels is 0.
    """
    low = condition.low_resolution
    if (0 if low is None else low.shape[1]) != channels:
        wanted = f"[B, {channels}, h, w]" if channels else "None"
        got = None if low is None else list(low.shape)
        raise ValueError(f"low_resolution must be given to this network as {wanted}, got {got}.")
    if low is None:
        return x_t
    enlarged = F.interpolate(low, size=x_t.shape[-2:], mode="bilinear", antialias=False).to(x_t.dtype)
    return torch.cat([x_t, enlarged], dim=1)

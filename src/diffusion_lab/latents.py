"""The space that a diffusion model works in: pixels, or the latents of an autoencoder (Rombach et al. 2022)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pixels:
    """Images as they are."""

    def image_shape(self, channels: int, side: int) -> tuple[int, int, int]:
        """Of the image [C, H, W] of what a network answers."""
        return channels, side, side

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> what is noised: the same."""
        return images

    def decode(self, x_0: Tensor) -> Tensor:
        """What was denoised -> images [B, C, H, W] in [-1, 1]: the same."""
        return x_0

    def noise_shape(self, images: Tensor) -> tuple[int, ...] | None:
        """Of the noise that encoding draws; None where it draws none."""
        return None


class Latents:
    """Draws of an autoencoder's posterior, shifted and scaled to unit size; the autoencoder is frozen.

    autoencoder: of the library diffusers, AutoencoderKL or what is called like it. It is no part of checkpoints.
    scale: of the latents, 0.18215 for Stable Diffusion's.  shift: taken from them first.
    """

    def __init__(self, autoencoder: nn.Module, scale: float = 0.18215, shift: float = 0.0) -> None:
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}.")
        self.autoencoder: Any = autoencoder.requires_grad_(False).eval()
        self.scale, self.shift = scale, shift

    @property
    def channels(self) -> int:
        """Of the latents."""
        return int(self.autoencoder.config.latent_channels)

    @property
    def factor(self) -> int:
        """An image's side over that of its latents."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    def image_shape(self, channels: int, side: int) -> tuple[int, int, int]:
        """Of the image [C, H, W] of latents."""
        return int(self.autoencoder.config.out_channels), side * self.factor, side * self.factor

    def noise_shape(self, images: Tensor) -> tuple[int, ...]:
        """Of the noise that encoding images [B, C, H, W] draws."""
        return (len(images), self.channels, images.shape[2] // self.factor, images.shape[3] // self.factor)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """A draw of the latents of images [B, C, H, W] in [-1, 1]; their mean where noise is None."""
        with torch.autocast(images.device.type, enabled=False):
            posterior = self._here(images).encode(images.to(self.autoencoder.dtype)).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean.dtype)
        return ((latents - self.shift) * self.scale).to(images.dtype)  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        """Images [B, C, H, W] of denoised latents, in [-1, 1] up to the autoencoder's errors."""
        latents = x_0 / self.scale + self.shift
        with torch.autocast(x_0.device.type, enabled=False):
            images: Tensor = self._here(x_0).decode(latents.to(self.autoencoder.dtype)).sample
        return images.to(x_0.dtype)

    def _here(self, like: Tensor) -> Any:
        self.autoencoder = self.autoencoder.to(like.device)
        return self.autoencoder


Space = Pixels | Latents

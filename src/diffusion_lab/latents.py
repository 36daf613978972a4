"""The space of a diffusion model: pixels, or the latents of an autoencoder (Rombach et al. 2022)."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion_lab.masking import encode_masked
from diffusion_lab.networks import Condition, Network


@dataclass(frozen=True)
class Pixels:
    """Pixel space: images are not encoded."""

    def image_shape(self, channels: int, side: int) -> tuple[int, int, int]:
        """Return the shape [C, H, W] of an image from the channels and the resolution of a network output."""
        return channels, side, side

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the images [B, C, H, W] unchanged."""
        return images

    def decode(self, x_0: Tensor) -> Tensor:
        """Return x_0 [B, C, H, W] unchanged."""
        return x_0

    def noise_shape(self, images: Tensor) -> tuple[int, ...] | None:
        """Return None: encoding needs no noise."""
        return None

    def condition_channels(self, channels: int) -> int:
        """Return the number of channels of condition images unchanged."""
        return channels

    def encode_condition(self, condition: Condition, network: Network) -> Condition:
        """Return the condition unchanged."""
        return condition


class Latents:
    """Latent space: samples of the posterior of a frozen autoencoder, shifted and scaled to unit variance.

    autoencoder: an `AutoencoderKL` of the library `diffusers`, or a module with the same interface. Checkpoints do not
        contain the autoencoder.
    scale: factor by which the latents are multiplied, 0.18215 for Stable Diffusion.
    shift: value that is subtracted from the latents before scaling.
    """

    def __init__(self, autoencoder: nn.Module, scale: float = 0.18215, shift: float = 0.0) -> None:
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}.")
        self.autoencoder: Any = autoencoder.requires_grad_(False).eval()
        self.scale, self.shift = scale, shift

    @property
    def channels(self) -> int:
        """Number of channels of the latents."""
        return int(self.autoencoder.config.latent_channels)

    @property
    def factor(self) -> int:
        """Ratio of the resolution of an image to the resolution of its latents."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    def image_shape(self, channels: int, side: int) -> tuple[int, int, int]:
        """Return the shape [C, H, W] of an image from the channels and the resolution of its latents."""
        return int(self.autoencoder.config.out_channels), side * self.factor, side * self.factor

    def noise_shape(self, images: Tensor) -> tuple[int, ...]:
        """Return the shape of the noise with which images [B, C, H, W] are encoded."""
        return (len(images), self.channels, images.shape[2] // self.factor, images.shape[3] // self.factor)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode images [B, C, H, W] in [-1, 1] to a posterior sample, or to the posterior mean if noise is None."""
        with torch.autocast(images.device.type, enabled=False):
            posterior = self._autoencoder_on_device_of(images).encode(images.to(self.autoencoder.dtype)).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean.dtype)
        return ((latents - self.shift) * self.scale).to(images.dtype)  # type: ignore[no-any-return]

    def condition_channels(self, channels: int) -> int:
        """Return the number of channels of encoded condition images; 0 without condition images.

        channels: number of channels of the condition images before they are encoded, see `encode_condition`.
        Raises ValueError if the autoencoder cannot encode images with this number of channels.
        """
        own = self._image_channels
        if channels not in (0, 1, own, own + 1):
            accepted = "1" if own == 1 else f"1, {own}"
            raise ValueError(
                f"condition images must have {accepted} or, with a mask, {own + 1} channels for this autoencoder, got "
                f"{channels}."
            )
        return 0 if channels == 0 else self.channels + (channels == own + 1)

    def encode_condition(self, condition: Condition, network: Network) -> Condition:
        """Encode condition images to posterior means, as x_0 is encoded (Rombach et al. 2022, sections 3.3 and 4.5).

        condition: its images are [B, C, H, W] in [-1, 1] with the C channels of the autoencoder, gray images
            [B, 1, H, W], or images with a hole and their masks [B, C + 1, H, W], see `masked_condition`.
        network: network that receives the condition.
        Raises ValueError if the images have another shape, or if the network does not receive such latents.
        """
        if network.condition_channels == 0:  # the network refuses images
            return condition
        image = self._require_image(condition.image, network)
        has_mask = image.shape[1] == self._image_channels + 1
        latents = encode_masked(image, self.encode) if has_mask else self._encode_gray_or_color(image)
        return replace(condition, image=latents)

    def decode(self, x_0: Tensor) -> Tensor:
        """Decode latents to images [B, C, H, W], in [-1, 1] up to the errors of the autoencoder.

        The images are a twice differentiable function of x_0.
        """
        latents = x_0 / self.scale + self.shift
        # The faster implementations of attention have no second derivatives.
        attention = sdpa_kernel(SDPBackend.MATH) if latents.requires_grad else nullcontext()
        with torch.autocast(x_0.device.type, enabled=False), attention:
            images: Tensor = self._autoencoder_on_device_of(x_0).decode(latents.to(self.autoencoder.dtype)).sample
        return images.to(x_0.dtype)

    @property
    def _image_channels(self) -> int:
        """Number of channels of the images that the autoencoder encodes."""
        return int(self.autoencoder.config.in_channels)

    def _encode_gray_or_color(self, images: Tensor) -> Tensor:
        return self.encode(images.expand(-1, self._image_channels, -1, -1))

    def _require_image(self, image: Tensor | None, network: Network) -> Tensor:
        """Return the condition images.  Raises ValueError as `encode_condition`."""
        own, channels, side = self._image_channels, network.condition_channels, network.resolution * self.factor
        accepted = [number for number in (own, own + 1, 1) if self.condition_channels(number) == channels]
        if not accepted:
            raise ValueError(
                f"condition_channels of the network must be {self.channels} or, with a mask, {self.channels + 1} for "
                f"these latents, got {channels}."
            )
        if image is None or image.shape[1] not in accepted or tuple(image.shape[2:]) != (side, side):
            wanted = " or ".join(map(str, dict.fromkeys(accepted)))
            raise ValueError(
                f"`image` must be [B, {wanted}, {side}, {side}] (pixels, which are encoded) for this network, got "
                f"{None if image is None else list(image.shape)}."
            )
        return image

    def _autoencoder_on_device_of(self, like: Tensor) -> Any:
        self.autoencoder = self.autoencoder.to(like.device)
        return self.autoencoder


Space = Pixels | Latents

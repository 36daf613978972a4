"""Network inputs: embeddings of time and augmentation, label checks, and the condition image."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lab.contracts import added
from diffusion_lab.networks.condition import Condition, Labels


@dataclass(frozen=True)
class Sinusoids:
    """Sines and cosines of the time at geometrically spaced frequencies, from 1 downwards (Vaswani et al. 2017).

    kind: order of the channels and last frequency. `ddpm` has the sines first and 1 / max_period as its last frequency
        (Ho et al. 2020, code). `adm` has the cosines first and ends one frequency before 1 / max_period (Dhariwal &
        Nichol 2021, code; Peebles & Xie 2023, code).
    time_scale: factor on the time; 1000 / T for networks of Nichol & Dhariwal (2021).
    max_period: inverse of the last frequency, in units of the scaled time.
    add_label: whether a `UNet` adds a linear map of the one-hot label to the sinusoids, see `TimeEmbedding`. If false,
        it adds a row of an embedding table to the embedding of the time (Nichol & Dhariwal 2021, section 2.6).
    Raises ValueError for another kind, and unless time_scale and max_period are above 0.

    >>> from diffusion_lab import Sinusoids
    >>> Sinusoids()(torch.tensor([0.0]), channels=4)
    tensor([[0., 0., 1., 1.]])
    """

    kind: Literal["ddpm", "adm"] = "ddpm"
    time_scale: float = 1.0
    max_period: float = 10_000.0
    add_label: bool = added(default=False)

    def __post_init__(self) -> None:
        if self.kind not in ("ddpm", "adm"):
            raise ValueError(f"kind must be ddpm or adm, got {self.kind}.")
        for name in ("time_scale", "max_period"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")

    def __call__(self, time: Tensor, channels: int) -> Tensor:
        """Embed the time [B].  channels: number of channels, even and at least 4.  Returns [B, channels], float32."""
        half = channels // 2
        steps = half - 1 if self.kind == "ddpm" else half
        exponent = torch.arange(half, dtype=torch.float32, device=time.device) / steps
        frequency = torch.exp(-math.log(self.max_period) * exponent)
        scaled = time.float() if self.time_scale == 1 else self.time_scale * time.float()
        angle = scaled[:, None] * frequency  # [B, half]
        parts = [angle.sin(), angle.cos()] if self.kind == "ddpm" else [angle.cos(), angle.sin()]
        return torch.cat(parts, dim=1)  # [B, channels]


class TimeEmbedding(nn.Module):
    """Sinusoids of the time, followed by two linear layers: [B] -> [B, embedding_channels].

    num_augmentation_channels: see `Network`. A linear map of these values, without bias, is added to the sinusoids
        (Karras et al. 2022, code), so that values of 0 have no effect.
    labels: classes whose labels are added to the sinusoids, too, if sinusoids.add_label is true (Karras et al. 2022,
        code of DDPM++): W sqrt(num_classes) onehot(label) + b. The null label is the zero vector and leaves b.
    """

    def __init__(
        self,
        channels: int,
        embedding_channels: int,
        num_augmentation_channels: int = 0,
        sinusoids: Sinusoids | None = None,
        labels: Labels | None = None,
    ) -> None:
        super().__init__()
        if channels < 4 or channels % 2:
            raise ValueError(f"channels must be even and at least 4 to embed the time, got {channels}.")
        if num_augmentation_channels < 0:
            raise ValueError(f"num_augmentation_channels must be at least 0, got {num_augmentation_channels}.")
        self.channels, self.num_augmentation_channels = channels, num_augmentation_channels
        self.sinusoids, self.labels = sinusoids or Sinusoids(), labels or Labels()
        self.layers = nn.Sequential(
            nn.Linear(channels, embedding_channels), nn.SiLU(), nn.Linear(embedding_channels, embedding_channels)
        )
        if num_augmentation_channels:
            self.augmentation = nn.Linear(num_augmentation_channels, channels, bias=False)
        if self.adds_label:
            self.label = nn.Linear(self.labels.num_classes, channels)
            nn.init.xavier_uniform_(self.label.weight)  # Karras et al. (2022), code
            nn.init.zeros_(self.label.bias)

    @property
    def adds_label(self) -> bool:
        """Whether labels are added to the sinusoids."""
        return self.sinusoids.add_label and self.labels.num_classes > 0

    def forward(self, time: Tensor, condition: Condition | None = None) -> Tensor:
        """Embed the time, the augmentation, the noise level of the low-resolution image, and labels if they are added.

        time: [B].  condition: condition of the images; None means no augmentation, low-resolution image or label.
        Returns [B, embedding_channels].
        Raises ValueError if the condition does not have num_augmentation_channels values per image.
        """
        embedding = self.sinusoids(time, self.channels).to(next(self.parameters()).dtype)
        numbers = None if condition is None else self._numbers(condition)
        if numbers is not None:
            embedding = embedding + self.augmentation(numbers.to(embedding.dtype))
        if self.adds_label and condition is not None and condition.label is not None:
            embedding = embedding + self.label(self._scaled_weights(condition.label, embedding.dtype))
        result: Tensor = self.layers(embedding)
        return result

    def _scaled_weights(self, label: Tensor, dtype: torch.dtype) -> Tensor:
        """Return one-hot vectors times sqrt(num_classes), which have mean square 1, and zeros for the null label.

        label: [B], or the weights of all labels, see `Condition`.  Returns [B, num_classes].
        """
        weights = F.one_hot(label, self.labels.num_rows) if label.dim() == 1 else label
        return math.sqrt(self.labels.num_classes) * weights[:, : self.labels.num_classes].to(dtype)

    def _numbers(self, condition: Condition) -> Tensor | None:
        """Return the augmentation of each image and, as the last value, the noise level of its low-resolution image.

        Returns [B, num_augmentation_channels], or None if the condition has neither.
        Raises ValueError if the number of values is not num_augmentation_channels.
        """
        augmentation, noise = condition.augmentation, condition.low_resolution_noise
        if augmentation is None and noise is None:
            return None
        parts = [augmentation] if augmentation is not None else []
        if noise is not None:
            num_missing = self.num_augmentation_channels - 1 if augmentation is None else 0
            parts += [noise.new_zeros(len(noise), max(0, num_missing)), noise[:, None]]
        numbers = torch.cat(parts, dim=1)
        if numbers.shape[1] != self.num_augmentation_channels:
            raise ValueError(
                f"augmentation and low_resolution_noise together must have num_augmentation_channels="
                f"{self.num_augmentation_channels} values per image, got {numbers.shape[1]}."
            )
        return numbers


def require_label(label: Tensor | None, labels: Labels) -> None:
    """Raise ValueError unless labels are given if and only if the network has classes."""
    if (label is None) == bool(labels.num_classes):
        wanted = f"a tensor of labels in 0..{labels.num_rows - 1}" if labels.num_classes else "None"
        raise ValueError(f"`label` must be {wanted} for this network, got {label}.")


def embed_label(embedding: nn.Embedding, label: Tensor | None) -> Tensor:
    """Return the embedding of each label, or the weighted mean of the embeddings of all labels: [B, channels].

    label: int64 [B], or weights of all labels, float [B, num_embeddings], see `Condition`.
    """
    assert label is not None  # see require_label
    if label.dim() == 1:
        return embedding(label)  # type: ignore[no-any-return]
    table: Tensor = embedding(torch.arange(embedding.num_embeddings, device=label.device))
    with torch.autocast(label.device.type, enabled=False):  # a weight of 1 selects exactly the embedding of a label
        return label.to(table.dtype) @ table


def with_condition_image(x_t: Tensor, condition: Condition, channels: int) -> Tensor:
    """Concatenate the noisy image and the condition image, upsampled if it is smaller (Saharia et al. 2021).

    x_t: [B, C, H, W].  channels: channels of the condition image, 0 if there is none.
    Returns [B, C + channels, H, W].
    Raises ValueError unless the condition has an image of exactly these channels.
    """
    image = condition.image
    if (0 if image is None else image.shape[1]) != channels:
        wanted = f"[B, {channels}, h, w]" if channels else "None"
        got = None if image is None else list(image.shape)
        raise ValueError(f"`image` must be {wanted} for this network, got {got}.")
    if image is None:
        return x_t
    upsampled = F.interpolate(image, size=x_t.shape[-2:], mode="bilinear", antialias=False).to(x_t.dtype)
    return torch.cat([x_t, upsampled], dim=1)

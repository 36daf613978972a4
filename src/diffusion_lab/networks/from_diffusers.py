"""Networks of the library diffusers, as ours are called. Imports torch alone: the network is handed in."""

import inspect
from typing import Any

from torch import Tensor, nn

from diffusion_lab.networks.condition import Condition, Labels
from diffusion_lab.networks.embeddings import beside_low_resolution, require_label


class FromDiffusers(nn.Module):
    """A diffusers model that answers images for (images, times): UNet2DModel, DiTTransformer2DModel and their like.

    network: the model, whose config says its channels and side (sample_size).
    labels: the classes it is told; its own table must have a row for each, and one for the null label if there is one.
    low_resolution_channels: of the low-resolution image beside x_t, which are among the model's in_channels.
    """

    num_augmentation_channels = 0

    def __init__(self, network: nn.Module, *, labels: Labels | None = None, low_resolution_channels: int = 0) -> None:
        super().__init__()
        config: Any = network.config
        self.network, self.labels, self.low_resolution_channels = network, labels or Labels(), low_resolution_channels
        side = config.sample_size
        if not isinstance(side, int) and (side is None or len(set(side)) != 1):
            raise ValueError(f"network.sample_size must be the side of square images, got {side}.")
        self.resolution = int(side if isinstance(side, int) else side[0])
        factor = 2 ** (len(getattr(config, "down_block_types", [None])) - 1)  # else it fails inside, at a skip
        if self.resolution % factor:
            raise ValueError(
                f"network.sample_size must be divisible by {factor}, as {type(network).__name__} halves it so often, "
                f"got {self.resolution}; try data.resolution={-(-self.resolution // factor) * factor}."
            )
        self.in_channels = int(config.in_channels) - low_resolution_channels
        if self.in_channels < 1:
            raise ValueError(
                f"network.in_channels must be above low_resolution_channels={low_resolution_channels}: it counts the "
                f"image and the low-resolution one, got {config.in_channels}."
            )
        self.out_channels = int(config.out_channels or config.in_channels)
        self._takes = set(inspect.signature(network.forward).parameters)
        if self.labels.num_classes and "class_labels" not in self._takes:
            raise ValueError(
                f"conditioning must be none for {type(network).__name__}, which takes no labels, got label."
            )

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x_t: [B, in_channels, H, W].  time: [B], as the schedule tells it.  Returns [B, out_channels, H, W]."""
        require_label(condition.label, self.labels)
        if condition.augmentation is not None:
            raise ValueError("augmentation must be none for a network of diffusers, which cannot be told of it.")
        x = beside_low_resolution(x_t, condition, self.low_resolution_channels)
        told = {"class_labels": condition.label, "encoder_hidden_states": None, "return_dict": False}
        answer: Tensor = self.network(x, time, **{k: v for k, v in told.items() if k in self._takes})[0]
        return answer.to(next(self.network.parameters()).dtype)  # under autocast too, as in `UNet`

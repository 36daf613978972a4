"""Adapter for `diffusers` networks. This module imports only torch: the caller passes the network."""

import inspect
from typing import Any

from torch import Tensor, nn

from diffusion_lab.networks.blocks import Blocks
from diffusion_lab.networks.condition import Condition, Labels
from diffusion_lab.networks.embeddings import require_label, with_condition_image
from diffusion_lab.networks.network import Network


class FromDiffusers(Network):
    """Adapter of a `diffusers` model such as UNet2DModel or DiTTransformer2DModel to the interface of `Network`.

    network: the model; its config contains the channels and the resolution of the images (sample_size).
    labels: classes that the model is conditioned on. The label embedding of the model must have a row for each class
        and for the null label.
    condition_channels: number of input channels of the model that belong to the condition image.

    Raises ValueError if the images of the model are not square, if its downsampling does not divide their resolution,
    or if it takes no labels although `labels` has classes.

        network = FromDiffusers(diffusers.UNet2DModel(sample_size=32, in_channels=3, out_channels=3))
    """

    def __init__(self, network: nn.Module, *, labels: Labels | None = None, condition_channels: int = 0) -> None:
        super().__init__()
        config: Any = network.config
        self.network, self.labels, self.condition_channels = network, Labels.of(labels), condition_channels
        side = config.sample_size
        if not isinstance(side, int) and (side is None or len(set(side)) != 1):
            raise ValueError(f"network.sample_size must be one number (the resolution of square images), got {side}.")
        self.resolution = int(side if isinstance(side, int) else side[0])
        # Without this check a skip connection would fail in forward.
        factor = 2 ** (len(getattr(config, "down_block_types", [None])) - 1)
        if self.resolution % factor:
            raise ValueError(
                f"network.sample_size must be divisible by {factor} (the downsampling factor of "
                f"{type(network).__name__}), got {self.resolution}; try sample_size="
                f"{-(-self.resolution // factor) * factor} (data.resolution sets it)."
            )
        self.in_channels = int(config.in_channels) - condition_channels
        if self.in_channels < 1:
            raise ValueError(
                f"network.in_channels must be greater than {condition_channels} (condition_channels), "
                f"because it also counts the channels of the noisy image, got {config.in_channels}."
            )
        self.out_channels = int(config.out_channels or config.in_channels)
        self._arguments = set(inspect.signature(network.forward).parameters)
        if self.labels.num_classes and "class_labels" not in self._arguments:
            raise ValueError(
                f"`labels` must be None (conditioning=none) for {type(network).__name__}, which takes no class labels, "
                f"got {self.labels}."
            )

    @property
    def conventions(self) -> dict[str, Any]:
        norm_eps = getattr(self.network.config, "norm_eps", None)
        return {} if norm_eps in (None, Blocks.norm_eps) else {"norm_eps": norm_eps}

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """See `Network.forward`.

        Raises ValueError if the condition lacks a part that the network requires or has a part that the network does
        not take, which includes every augmentation and every noise level of a low-resolution image.
        """
        require_label(condition.label, self.labels)
        if condition.augmentation is not None or condition.low_resolution_noise is not None:
            raise ValueError(
                "augmentation and low_resolution_noise must be None for a `diffusers` network, which takes neither."
            )
        x = with_condition_image(x_t, condition, self.condition_channels)
        options = {"class_labels": condition.label, "encoder_hidden_states": None, "return_dict": False}
        output: Tensor = self.network(x, time, **{k: v for k, v in options.items() if k in self._arguments})[0]
        return output.to(next(self.network.parameters()).dtype)  # also under autocast, as in `UNet`

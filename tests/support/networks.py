"""Networks for tests of what surrounds a network."""

from collections.abc import Callable

from torch import Tensor

from diffusion_lab.networks import Blocks, Condition, Labels, Network, UNet


class NetworkFunction(Network):
    """A function (x_t, time, condition) -> output as a network of images of 2 channels and side 4."""

    def __init__(self, function: Callable[[Tensor, Tensor, Condition], Tensor], labels: Labels | None = None) -> None:
        super().__init__()
        self.function, self.labels = function, labels or Labels()
        self.in_channels, self.out_channels, self.resolution = 2, 2, 4

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.function(x_t, time, condition)


def small_unet(channels: int = 1, labels: Labels | None = None, *, out_channels: int | None = None) -> UNet:
    """Return a U-Net of a few thousand weights for images of side 8, with attention at side 4."""
    return UNet(
        channels, out_channels or channels, resolution=8, channels=8, channel_multipliers=(1, 2), num_blocks=1,
        attention_resolutions=(4,), blocks=Blocks(num_groups=4), labels=labels,
    )  # fmt: skip

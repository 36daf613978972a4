"""Networks for tests of what surrounds a network."""

from collections.abc import Callable

from torch import Tensor

from diffusion_lab.networks import Condition, Labels, Network


class NetworkFunction(Network):
    """A function (x_t, time, condition) -> output as a network of images of 2 channels and side 4."""

    def __init__(self, function: Callable[[Tensor, Tensor, Condition], Tensor], labels: Labels | None = None) -> None:
        super().__init__()
        self.function, self.labels = function, labels or Labels()
        self.in_channels, self.out_channels, self.resolution = 2, 2, 4

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.function(x_t, time, condition)

"""Interfaces that denoising networks and classifiers for noisy images implement.

A network from another library needs a short adapter:

    class Adapter(Network):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.in_channels, self.out_channels, self.resolution = network, 3, 3, 32

        def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
            return self.network(x_t, time)
"""

from torch import Tensor, nn

from diffusion_lab.networks.condition import Condition, Labels


class Network(nn.Module):
    """A denoising network: (noisy image, time, condition) -> output.

    in_channels: channels of the image.
    out_channels: channels of the output; in_channels, or 2 in_channels if the variance is learned.
    resolution: height and width of the image in pixels.
    labels: classes that the network is conditioned on; none by default.
    num_augmentation_channels: number of values per image that describe its augmentation and, as the last value, the
        noise level of its low-resolution image; 0 for a network that takes neither.
    low_resolution_channels: channels of the low-resolution image; 0 for a network that takes no such image.

    A module that has these attributes and this `forward` need not inherit from this class.
    """

    in_channels: int
    out_channels: int
    resolution: int
    labels: Labels = Labels()
    num_augmentation_channels: int = 0
    low_resolution_channels: int = 0

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Return the output of the network, an estimate of the target that the `Prediction` of the run defines.

        x_t: [B, in_channels, resolution, resolution], scaled by the preconditioning.
        time: [B], as returned by `NoiseSchedule.network_time`, for example the step index of a discrete schedule.
        Returns [B, out_channels, resolution, resolution].
        """
        raise NotImplementedError


class ClassifierNetwork(nn.Module):
    """A classifier for noisy images: (noisy image, time) -> logits.

    in_channels, resolution: channels, and height and width, of the image.  num_classes: number of logits.
    """

    in_channels: int
    resolution: int
    num_classes: int

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """Return logits, [B, num_classes].

        x_t: [B, in_channels, resolution, resolution], divided by sqrt(alpha_t^2 + sigma_t^2).
        time: [B], see `Network.forward`.
        """
        raise NotImplementedError


def missing_attributes(network: nn.Module, required: type[Network | ClassifierNetwork]) -> list[str]:
    """Return the names of the attributes of `required` that `network` does not have.

    >>> from diffusion_lab import ClassifierNetwork, missing_attributes
    >>> missing_attributes(torch.nn.Linear(1, 1), ClassifierNetwork)
    ['in_channels', 'resolution', 'num_classes']
    """
    return [name for name in required.__annotations__ if not hasattr(network, name)]

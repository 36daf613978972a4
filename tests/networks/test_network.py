"""The interfaces of networks, and an adapter of a network from elsewhere."""

import torch
from torch import Tensor, nn

from diffusion_lab.networks import ClassifierNetwork, Condition, Network, missing_attributes
from support.small_runs import fit, small_module, weights


class Adapter(Network):
    """The adapter in the docstring of networks/network.py, around one convolution."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.in_channels, self.out_channels, self.resolution = network, 1, 1, 8

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        output: Tensor = self.network(x_t)
        return output


def test_a_network_from_elsewhere_is_trained_through_an_adapter_of_a_few_lines() -> None:
    module = small_module(network=Adapter(nn.Conv2d(1, 1, 1)))
    before = weights(module.network).clone()
    fit(module, 2)
    assert not torch.equal(weights(module.network), before)


def test_the_attributes_that_a_module_does_not_have_are_named() -> None:
    convolution = nn.Conv2d(1, 1, 1)
    assert missing_attributes(Adapter(convolution), Network) == []
    assert missing_attributes(small_module().network, Network) == []
    assert missing_attributes(convolution, Network) == ["resolution"]  # the others have defaults
    assert missing_attributes(convolution, ClassifierNetwork) == ["resolution", "num_classes"]

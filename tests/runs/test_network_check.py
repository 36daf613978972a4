"""The forward pass that checks a network of another package before training."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.errors import UserError
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.networks import Condition, Labels, Network
from diffusion_lab.runs.network_check import require_output
from support.small_runs import FewImages, small_module


class Foreign(Network):
    """A network of another package: a function."""

    def __init__(self, function: Callable[[Tensor, Tensor, Condition], Tensor]) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.resolution, self.labels = 1, 1, 8, Labels(3)
        self.weight, self.function = torch.nn.Parameter(torch.ones(1)), function

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.function(self.weight * x_t, time, condition)


def check(
    function: Callable[[Tensor, Tensor, Condition], Tensor], low_resolution: LowResolution | None = None
) -> Network:
    network = Foreign(function)
    data = ImageDataModule(FewImages(), batch_size=12, seed=3, low_resolution=low_resolution)
    require_output(small_module(network=network), data)
    return network


def test_a_network_receives_images_the_last_time_and_the_parts_of_its_condition() -> None:
    seen: list[tuple[Tensor, Tensor, Condition]] = []
    network = check(
        lambda *inputs: seen.append(inputs) or torch.rand_like(inputs[0]),  # type: ignore[func-returns-value]
        low_resolution=LowResolution(4, max_noise=0.5),
    )
    ((x_t, time, condition),) = seen
    assert x_t.shape == (2, 1, 8, 8)
    assert time.tolist() == [19, 19]
    assert condition.label is not None
    assert condition.label.tolist() == [0, 0]
    assert condition.low_resolution is not None
    assert condition.low_resolution.shape == (2, 1, 4, 4)
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), torch.Generator().manual_seed(0).get_state())  # as before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x_t, time, condition: x_t[:, :, 1:],
            "`model` must return a tensor of the shape [2, 1, 8, 8] for two images, got [2, 1, 7, 8] from Foreign.",
        ),
        (
            lambda x_t, time, condition: (x_t,),
            "`model` must return a tensor of the shape [2, 1, 8, 8] for two images, got tuple from Foreign.",
        ),
        (
            lambda x_t, time, condition: x_t @ x_t.new_ones(3, 3),
            "`model`: Foreign cannot process images, RuntimeError: ",
        ),
    ],
)
def test_a_network_that_fails_is_rejected_with_a_message(
    function: Callable[[Tensor, Tensor, Condition], Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as caught:
        check(function)
    if "RuntimeError" in message:
        line = function.__code__.co_firstlineno  # the line of the network's code that raised the error
        assert str(caught.value).endswith(f"({__file__}:{line}).")

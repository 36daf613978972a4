"""The forward pass that checks a network of another package before training."""

import re
from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.errors import UserError
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.networks import Condition, HalfUNet, Labels, Network
from diffusion_lab.process import CosineSchedule, GaussianProcess, Uniform
from diffusion_lab.runs.setup.network_check import require_forward, require_input_channels, require_labels
from diffusion_lab.training import ClassifierModule, OptimizerFactory
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
    require_forward(small_module(network=network), data)
    return network


def test_a_denoising_network_may_have_the_number_of_classes_as_an_attribute() -> None:
    def denoise(x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.label is not None
        return x_t

    network = Foreign(denoise)
    network.num_classes = 3  # type: ignore[assignment]
    require_forward(small_module(network=network), ImageDataModule(FewImages(), batch_size=12, seed=3))


def test_a_classifier_must_return_one_logit_per_class() -> None:
    class Logits(HalfUNet):
        def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
            return super().forward(x_t, time)[:, 1:]

    process = GaussianProcess(CosineSchedule())
    network = Logits(1, 3, resolution=8, channels=32, channel_multipliers=(1,), attention_resolutions=())
    module = ClassifierModule(
        network, process, times=Uniform(process.schedule), optimizer=OptimizerFactory(torch.optim.Adam, lr=1e-3)
    )
    message = (
        "`forward` of Logits must return a tensor of the shape [2, 3] for images of the shape [2, 1, 8, 8], got [2, 2]"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        require_forward(module, ImageDataModule(FewImages(), batch_size=12, seed=3))


def test_a_network_receives_images_the_last_time_and_the_parts_of_its_condition() -> None:
    seen: list[tuple[Tensor, Tensor, Condition]] = []
    network = check(
        lambda *inputs: seen.append(inputs) or inputs[0] + torch.rand_like(inputs[0]),  # type: ignore[func-returns-value]
        low_resolution=LowResolution(4, max_noise=0.5),
    )
    ((x_t, time, condition),) = seen
    assert x_t.shape == (2, 1, 8, 8)
    assert time.tolist() == [19, 19]
    assert condition.label is not None
    assert condition.label.tolist() == [0, 2]  # the smallest and the largest
    assert condition.image is not None
    assert condition.image.shape == (2, 1, 4, 4)
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), torch.Generator().manual_seed(0).get_state())  # as before


def test_a_network_for_other_channels_than_those_of_the_images_is_refused() -> None:
    config = OmegaConf.create({"data": {"channels": 3}, "space": {"_target_": "diffusion_lab.latents.Pixels"}})
    message = r"`model` must take images with data.channels=3, got Foreign with in_channels=1; .* \${data.channels}"
    with pytest.raises(UserError, match=message):
        require_input_channels(Foreign(lambda x_t, time, condition: x_t), config)
    config.space._target_ = "diffusion_lab.latents.Latents"  # the autoencoder determines the channels
    require_input_channels(Foreign(lambda x_t, time, condition: x_t), config)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x_t, time, condition: x_t[:, :, 1:],
            "`model`: `forward` of Foreign must return a tensor of the shape [2, 1, 8, 8] for images of the shape "
            "[2, 1, 8, 8], got [2, 1, 7, 8].",
        ),
        (
            lambda x_t, time, condition: (x_t,),
            "`model`: `forward` of Foreign must return a tensor of the shape [2, 1, 8, 8] for images of the shape "
            "[2, 1, 8, 8], got tuple.",
        ),
        (
            lambda x_t, time, condition: x_t @ x_t.new_ones(3, 3),
            "`model`: Foreign cannot process images, RuntimeError: ",
        ),
        (
            lambda x_t, time, condition: x_t.detach(),
            "`model`: the output must depend on the parameters of Foreign, of which it uses none with a gradient; ",
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


def test_a_network_without_classes_is_refused_if_the_run_sets_classes() -> None:
    network = Foreign(lambda x_t, time, condition: x_t)
    require_labels(network, {"num_classes": 3})
    network.labels = Labels(0)
    require_labels(network, {"num_classes": 0})
    message = r"`model` must have the attribute labels for conditioning=label, got Foreign, which has no classes: "
    with pytest.raises(UserError, match=message):
        require_labels(network, {"num_classes": 3})


@pytest.mark.parametrize(
    ("num_rows", "labels", "message"),
    [
        (3, Labels(3, dropout=0.1), r"the label 3 \(the null label, which replaces dropped labels\), IndexError: .*; "
         r"use labels.num_rows \(4\) rows for an embedding of the labels\.$"),
        (2, Labels(3), r"the label 2, IndexError: .*; use labels.num_rows \(3\) rows for an embedding"),
        (4, Labels(3, dropout=0.1), None),
    ],
)  # fmt: skip
def test_an_embedding_without_a_row_for_the_largest_label_is_refused(
    num_rows: int, labels: Labels, message: str | None
) -> None:
    class Embedding(Foreign):
        def __init__(self) -> None:
            super().__init__(lambda x_t, time, condition: x_t + self.rows(condition.label)[:, :, None, None])
            self.labels, self.rows = labels, torch.nn.Embedding(num_rows, 1)

    module, data = small_module(network=Embedding()), ImageDataModule(FewImages(), batch_size=12, seed=3)
    if message is None:
        require_forward(module, data)
        return
    with pytest.raises(UserError, match=f"^`model`: Embedding cannot process {message}"):
        require_forward(module, data)

"""Mixtures of classes: weights of all labels in place of labels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.denoiser import Estimate
from diffusion_lab.guidance import ClassifierFreeGuidance, Guidable, NoisyClassifier, Strength
from diffusion_lab.networks import (
    Blocks,
    Condition,
    DiT,
    HalfUNet,
    Labels,
    Network,
    PixelTransformer,
    Sinusoids,
    UNet,
)
from diffusion_lab.process import CosineSchedule, Epsilon, GaussianProcess
from support.pipelines import mild

LABELS = Labels(3, dropout=0.1)
U_NET: dict[str, Any] = {
    "channels": 8, "channel_multipliers": (1,), "num_blocks": 1, "attention_resolutions": (), "labels": LABELS,
    "blocks": Blocks(num_groups=4),
}  # fmt: skip
TRANSFORMER: dict[str, Any] = {"channels": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "labels": LABELS}

networks = pytest.mark.parametrize(
    "build",
    [
        lambda: UNet(2, 2, resolution=8, **U_NET),
        lambda: UNet(2, 2, resolution=8, sinusoids=Sinusoids(add_label=True), **U_NET),
        lambda: DiT(2, 2, resolution=8, **TRANSFORMER),
        lambda: PixelTransformer(2, 2, resolution=8, **TRANSFORMER),
    ],
    ids=["unet", "unet with added labels", "dit", "pixel transformer"],
)


def outputs(network: Any, label: Tensor) -> Tensor:
    x_t = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    output: Tensor = network(x_t, torch.full((4,), 300.0), Condition(label))
    return output


@networks
def test_a_weight_of_1_is_the_label_and_other_weights_mix_the_embeddings(build: Callable[[], Network]) -> None:
    network: Any = mild(build())
    assert getattr(network, "mixes_labels", False)
    label = torch.tensor([2, 0, 3, 1])
    expected = outputs(network, label)
    assert torch.allclose(outputs(network, F.one_hot(label, 4).float()), expected, atol=1e-6)
    weights = torch.tensor([0.25, 0.75, 0.0, 0.0]).expand(4, -1)
    mixed = outputs(network, weights)
    table: Any = getattr(network, "label_embedding", None)
    with torch.no_grad():
        if table is not None:
            table.weight[2] = 0.25 * table.weight[0] + 0.75 * table.weight[1]
        else:
            added = network.time_embedding.label
            added.weight[:, 2] = 0.25 * added.weight[:, 0] + 0.75 * added.weight[:, 1]
    assert torch.allclose(mixed, outputs(network, torch.full((4,), 2)), atol=1e-6)


def test_classifier_free_guidance_of_a_mixture_extrapolates_from_the_null_label() -> None:
    received: list[Tensor] = []

    def denoiser(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        assert condition.label is not None
        received.append(condition.label)
        levels = torch.tensor([0.1, 0.5, 0.3, -0.2])  # of the three classes and the null label
        return Estimate((condition.label @ levels).view(-1, 1, 1, 1).expand_as(x_t))

    guidable = Guidable(denoiser, GaussianProcess(CosineSchedule()), Epsilon())
    guided = ClassifierFreeGuidance(guidable, null_label=3, strength=Strength(3.0))
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    x_0 = guided(torch.zeros(1, 1, 2, 2), torch.tensor([0.5]), Condition(weights)).x_0
    assert received[0].tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 1]]
    assert torch.allclose(x_0, torch.full((1, 1, 2, 2), -0.2 + 3 * (0.3 + 0.2)))


def test_the_gradient_of_a_mixture_is_the_weighted_mean_of_the_gradients_of_the_classes() -> None:
    network = HalfUNet(1, 3, resolution=8, channels=32, channel_multipliers=(1,))
    torch.nn.init.normal_(list(network.parameters())[-2], generator=torch.Generator().manual_seed(1))
    classifier = NoisyClassifier(network, GaussianProcess(CosineSchedule()))
    x_t, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.6])
    first, second = (classifier.gradient(x_t, t, torch.tensor([label, label])) for label in (0, 2))
    mixed = classifier.gradient(x_t, t, torch.tensor([0.25, 0, 0.75]).expand(2, -1))
    assert float(first.abs().max()) > 0
    assert torch.allclose(mixed, 0.25 * first + 0.75 * second, atol=1e-6)

"""Inpainting by a network that is conditioned on the image with the hole."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_lab import (
    DDIM,
    CosineSchedule,
    Estimate,
    GaussianBlur,
    GaussianProcess,
    ImageNoise,
    Inpainting,
    InpaintingNetwork,
    Measurement,
)
from diffusion_lab.errors import UserError
from diffusion_lab.networks import Condition

SHAPE = (2, 4, 4)
IMAGES = torch.linspace(-1, 1, 3 * 32).view(3, *SHAPE)


def test_the_network_receives_the_known_pixels_the_masks_and_the_labels() -> None:
    hole = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    hole[0, :, :2], hole[1, :, :, 1], hole[2, :, 3, 3] = True, True, True
    received = list[Condition]()

    def network(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        received.append(condition)
        return Estimate(torch.zeros_like(x_t))

    sampler, label = DDIM(GaussianProcess(CosineSchedule()), num_steps=3), torch.tensor([4, 5, 6])
    measurement = Measurement.of(Inpainting(SHAPE, hole), IMAGES)
    InpaintingNetwork().sample(sampler, network, measurement, ImageNoise(3, SHAPE), label)
    assert len(received) == 3
    for condition in received:
        assert condition.image is not None
        assert torch.equal(condition.image[:, 2:], (~hole).float())
        assert torch.equal(condition.image[:, :2], IMAGES.masked_fill(hole, 0))
        assert condition.label is label


def test_a_network_for_latents_receives_the_encoded_image_and_the_mask_of_its_blocks() -> None:
    hole = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    hole[:, :, 1, 1], hole[:, :, :2, 3] = True, True
    received = list[Condition]()

    def network(x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        received.append(condition)
        return Estimate(torch.zeros_like(x_t))

    sampler = DDIM(GaussianProcess(CosineSchedule()), num_steps=1)
    measurement = Measurement.of(Inpainting(SHAPE, hole), IMAGES)
    latent = replace(measurement, decode=lambda x_0: x_0, encode=lambda images: 3 * images[:, :, ::2, ::2])
    InpaintingNetwork().sample(sampler, network, latent, ImageNoise(3, (2, 2, 2)))
    (condition,) = received
    assert condition.image is not None
    assert torch.equal(condition.image[:, :2], 3 * IMAGES.masked_fill(hole, 0)[:, :, ::2, ::2])
    assert condition.image[:, 2].tolist() == 3 * [[[0, 0], [1, 1]]]
    with pytest.raises(UserError, match=r"`encode` of the measurement must be given .* in a latent space, got None"):
        InpaintingNetwork().sample(sampler, network, replace(latent, encode=None), ImageNoise(3, (2, 2, 2)))


@pytest.mark.parametrize(
    ("measurement", "message"),
    [
        (Measurement.of(GaussianBlur(SHAPE, std=1.0), IMAGES), "must be another choice for GaussianBlur, got network"),
        (
            Measurement.of(Inpainting(SHAPE, torch.eye(4).bool()), IMAGES, 0.1, torch.zeros_like(IMAGES)),
            "task.noise must be 0 for posterior=network, got 0.1",
        ),
    ],
)
def test_other_measurements_are_refused(measurement: Measurement, message: str) -> None:
    with pytest.raises(UserError, match=message):
        InpaintingNetwork().require(DDIM(GaussianProcess(CosineSchedule())), measurement)

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import diffusion_lab
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.features import FashionCNN
from diffusion_lab.pixels import to_uint8

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"


@dataclass(frozen=True)
class Clothes:
    pixels: Tensor
    label: Tensor


@pytest.fixture(scope="module")
def clothes() -> Clothes:
    """The first thousand images that ship with the package: grey, 28 x 28."""
    images, first = ImageStore(None, FASHION_MINI, channels=1, resolution=28).load(), torch.arange(1000)
    return Clothes(images.gather(first), images.label[first])


@pytest.fixture(scope="module")
def network() -> FashionCNN:
    return FashionCNN()


def test_all_grey_levels_survive_the_way_to_images_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 32, 8)
    for image in (levels / 127.5 - 1, levels.double() / 127.5 - 1, (levels.float() / 255) * 2 - 1):
        assert torch.equal(to_uint8(image), levels)


def test_levels_are_rounded_and_held_in_range() -> None:
    image = torch.tensor([-7.0, -1.0, -0.004, 0.0, 0.004, 1.0, 7.0]).view(1, 1, 7, 1)
    assert to_uint8(image).flatten().tolist() == [0, 0, 127, 128, 128, 255, 255]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_images_that_are_not_finite_are_refused(wrong: float) -> None:
    images = torch.zeros(5, 3, 8, 6)
    images[3, 1, 4, 2] = wrong
    with pytest.raises(ValueError, match="images must be finite, got NaN or infinity"):
        to_uint8(images)


def test_the_shipped_network_knows_clothes_it_never_trained_on(network: FashionCNN, clothes: Clothes) -> None:
    logits = network(clothes.pixels)["logits"]
    assert float((logits.argmax(1) == clothes.label).double().mean()) >= 0.93


def test_features_are_float32_one_row_an_image(network: FashionCNN, clothes: Clothes) -> None:
    features = network(clothes.pixels[:5])["pooled"]
    assert (features.shape, features.dtype, features.requires_grad) == ((5, 128), torch.float32, False)
    assert bool((features >= 0).all())
    torch.testing.assert_close(network(clothes.pixels[3:4])["pooled"], features[3:4], rtol=1e-4, atol=1e-5)


def test_padding_to_32_pixels_does_not_change_the_features(network: FashionCNN, clothes: Clothes) -> None:
    padded = F.pad(clothes.pixels[:50], (2, 2, 2, 2))
    assert padded.shape == (50, 1, 32, 32)
    assert torch.equal(network(padded)["pooled"], network(clothes.pixels[:50])["pooled"])


def test_images_of_other_sides_are_resized(network: FashionCNN, clothes: Clothes) -> None:
    doubled = clothes.pixels.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    logits = network(doubled)["logits"]
    assert float((logits.argmax(1) == clothes.label).double().mean()) >= 0.85


def test_features_stay_in_evaluation_mode_and_out_of_autocast(network: FashionCNN, clothes: Clothes) -> None:
    exact = network(clothes.pixels[:5])["pooled"]
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(clothes.pixels[:5])["pooled"]
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(features, exact)


@pytest.mark.parametrize("pixels", [torch.zeros(5, 1, 28, 28), torch.zeros(5, 1, 28, 28, dtype=torch.int64)])
def test_images_that_are_not_uint8_are_refused(network: FashionCNN, pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=f"pixels must be uint8, got {pixels.dtype}: quantise images with to_uint8"):
        network(pixels)


def test_images_of_three_channels_are_refused(network: FashionCNN) -> None:
    with pytest.raises(ValueError, match=r"fashion_cnn takes images of \(1,\) channels, got 3"):
        network(torch.zeros(5, 3, 28, 28, dtype=torch.uint8))

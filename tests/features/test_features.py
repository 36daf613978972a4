from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import diffusion_lab
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.features import FashionCNN

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"


@dataclass(frozen=True)
class Clothes:
    pixels: Tensor
    label: Tensor


@pytest.fixture(scope="module")
def clothes() -> Clothes:
    """First thousand images of the embedded set: gray, 28 x 28 pixels."""
    images, first = ImageStore(None, FASHION_MINI, channels=1, resolution=28).load(), torch.arange(1000)
    return Clothes(images.gather(first), images.label[first])


@pytest.fixture(scope="module")
def network() -> FashionCNN:
    return FashionCNN()


def test_the_network_classifies_images_that_it_was_not_trained_on(network: FashionCNN, clothes: Clothes) -> None:
    logits = network(clothes.pixels)["logits"]
    assert float((logits.argmax(1) == clothes.label).double().mean()) >= 0.93


def test_features_are_float32_with_one_row_per_image(network: FashionCNN, clothes: Clothes) -> None:
    features = network(clothes.pixels[:5])["pooled"]
    assert (features.shape, features.dtype, features.requires_grad) == ((5, 128), torch.float32, False)
    assert bool((features >= 0).all())
    torch.testing.assert_close(network(clothes.pixels[3:4])["pooled"], features[3:4], rtol=1e-4, atol=1e-5)


def test_padding_to_32_pixels_does_not_change_the_features(network: FashionCNN, clothes: Clothes) -> None:
    padded = F.pad(clothes.pixels[:50], (2, 2, 2, 2))
    assert padded.shape == (50, 1, 32, 32)
    assert torch.equal(network(padded)["pooled"], network(clothes.pixels[:50])["pooled"])


def test_images_of_other_sizes_are_resized(network: FashionCNN, clothes: Clothes) -> None:
    doubled = clothes.pixels[:300].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    logits = network(doubled)["logits"]
    assert float((logits.argmax(1) == clothes.label[:300]).double().mean()) >= 0.85


def test_features_stay_in_evaluation_mode_and_ignore_autocast(network: FashionCNN, clothes: Clothes) -> None:
    exact = network(clothes.pixels[:5])["pooled"]
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network(clothes.pixels[:5])["pooled"]
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(features, exact)


@pytest.mark.parametrize("pixels", [torch.zeros(5, 1, 28, 28), torch.zeros(5, 1, 28, 28, dtype=torch.int64)])
def test_images_that_are_not_uint8_are_refused(network: FashionCNN, pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=f"`pixels` must be uint8, got {pixels.dtype}; quantize images with to_uint8"):
        network(pixels)


def test_an_unknown_output_is_refused_with_the_names_of_the_outputs(network: FashionCNN, clothes: Clothes) -> None:
    with pytest.raises(KeyError, match="the outputs of the feature network are pooled, logits, got 'pool'"):
        network(clothes.pixels[:2])["pool"]


def test_images_of_three_channels_are_refused(network: FashionCNN) -> None:
    with pytest.raises(ValueError, match="`pixels` must have 1 channels for fashion_cnn, got 3"):
        network(torch.zeros(5, 3, 28, 28, dtype=torch.uint8))

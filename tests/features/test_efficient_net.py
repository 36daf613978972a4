from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import diffusion_lab
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.features import EfficientNet, FeaturesUnavailableError, efficient_net

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, efficient_net.PACKAGES)), reason="needs pip install -e '.[features]'"
)


@pytest.fixture(scope="module")
def network() -> EfficientNet:
    return EfficientNet()


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return ImageStore(None, FASHION_MINI, channels=1, resolution=28).load().gather(torch.arange(60))


def distance(one: Tensor, other: Tensor) -> float:
    """Return the squared distance between the means of features."""
    return float((one.double().mean(0) - other.double().mean(0)).square().sum())


def noisy(pixels: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    return (pixels + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def test_the_weights_of_the_package_are_the_expected_ones(network: EfficientNet) -> None:
    assert network.weights_sha256 == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008  # as Keras counts lite0


@pytest.mark.full
def test_the_distance_of_features_grows_with_noise(network: EfficientNet, clothes: Tensor) -> None:
    clean = network(clothes[:30])["pooled"]
    others = network(clothes[30:])["pooled"]
    distances = [distance(clean, network(noisy(clothes[:30], sigma))["pooled"]) for sigma in (0, 4, 16, 64)]
    assert distances[0] == 0
    assert 0 < 4 * distances[1] < 2 * distances[2] < distances[3]
    assert distance(clean, others) < distances[2]


def test_logits_are_those_of_the_packages_network_at_128_pixels(network: EfficientNet) -> None:
    pixels = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    features = network(pixels)
    with torch.no_grad():
        expected = network.network((pixels.float() - 127) / 128)
    assert {name: output.shape for name, output in features.items()} == {"pooled": (2, 1280), "logits": (2, 1000)}
    torch.testing.assert_close(features["logits"], expected, rtol=1e-4, atol=1e-5)


def test_large_images_are_antialiased_and_gray_images_repeated_to_three_channels(
    network: EfficientNet, clothes: Tensor
) -> None:
    stripes = torch.tensor([0, 254, 254, 0], dtype=torch.uint8).repeat(128).expand(1, 1, 512, 512)
    uniform = torch.full((1, 1, 128, 128), 127, dtype=torch.uint8)
    white = F.interpolate(
        stripes.float(), (128, 128), mode="bilinear"
    )  # without antialiasing, only the inner columns are sampled
    assert bool((white == 254).all())
    inputs = []
    hook = network.network._conv_stem.register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[0]))
    network(stripes)
    network(uniform)
    hook.remove()
    torch.testing.assert_close(inputs[0][..., 2:-2], inputs[1][..., 2:-2], rtol=0, atol=1e-4)
    assert torch.equal(network(clothes[:3])["pooled"], network(clothes[:3].repeat(1, 3, 1, 1))["pooled"])


def test_other_weights_can_be_loaded_and_verified(network: EfficientNet, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(network.network.state_dict(), path)
    other = EfficientNet(path)
    assert other.weights_sha256 != network.weights_sha256
    assert other.weights_sha256 is not None
    with pytest.raises(FeaturesUnavailableError, match=r"other\.pth must have a SHA-256 that begins with 57934424"):
        EfficientNet(path, "57934424")


def test_damaged_weights_of_the_package_are_refused(
    network: EfficientNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(network.network.state_dict(), tmp_path / "other.pth")
    monkeypatch.setattr(EfficientNet, "_packaged_weights", lambda self: tmp_path / "other.pth")
    with pytest.raises(FeaturesUnavailableError, match="must have a SHA-256 that begins with 57934424"):
        EfficientNet()


@pytest.mark.parametrize("package", efficient_net.PACKAGES)
def test_a_missing_package_is_reported_with_the_remedy(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficient_net, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(FeaturesUnavailableError, match=rf"requires the package {package}; run pip install -e '.\[f"):
        EfficientNet()

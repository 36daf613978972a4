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
    """Squared distance between the means of features."""
    return float((one.double().mean(0) - other.double().mean(0)).square().sum())


def noisy(pixels: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    return (pixels + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def test_the_packaged_weights_are_the_named_ones(network: EfficientNet) -> None:
    assert network.weights_sha256 == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008  # as Keras counts lite0


def test_features_grow_apart_with_noise_and_from_other_clothes(network: EfficientNet, clothes: Tensor) -> None:
    clean = network(clothes[:30])["pooled"]
    others = network(clothes[30:])["pooled"]
    apart = [distance(clean, network(noisy(clothes[:30], sigma))["pooled"]) for sigma in (0, 4, 16, 64)]
    assert apart[0] == 0
    assert 0 < 4 * apart[1] < 2 * apart[2] < apart[3]
    assert distance(clean, others) < apart[2]


def test_features_are_the_networks_own_at_128_pixels(network: EfficientNet) -> None:
    pixels = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    features = network(pixels)
    with torch.no_grad():
        own = network.network((pixels.float() - 127) / 128)
    assert {name: output.shape for name, output in features.items()} == {"pooled": (2, 1280), "logits": (2, 1000)}
    torch.testing.assert_close(features["logits"], own, rtol=1e-4, atol=1e-5)


def test_large_images_are_resized_with_antialiasing_and_grey_ones_repeated(
    network: EfficientNet, clothes: Tensor
) -> None:
    stripes = torch.tensor([0, 254, 254, 0], dtype=torch.uint8).repeat(128).expand(1, 1, 512, 512)
    even = torch.full((1, 1, 128, 128), 127, dtype=torch.uint8)
    white = F.interpolate(stripes.float(), (128, 128), mode="bilinear")  # without, it sees the inner columns alone
    assert bool((white == 254).all())
    seen = []
    hook = network.network._conv_stem.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    network(stripes)
    network(even)
    hook.remove()
    torch.testing.assert_close(seen[0][..., 2:-2], seen[1][..., 2:-2], rtol=0, atol=1e-4)
    assert torch.equal(network(clothes[:3])["pooled"], network(clothes[:3].repeat(1, 3, 1, 1))["pooled"])


def test_other_weights_can_be_named_and_asked_for(network: EfficientNet, tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save(network.network.state_dict(), path)
    own = EfficientNet(path)
    assert own.weights_sha256 != network.weights_sha256
    assert own.weights_sha256 is not None
    with pytest.raises(FeaturesUnavailableError, match=r"own\.pth must have a sha256 that begins with 57934424"):
        EfficientNet(path, "57934424")


def test_a_damaged_package_is_refused(network: EfficientNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(network.network.state_dict(), tmp_path / "own.pth")
    monkeypatch.setattr(EfficientNet, "_packaged", lambda self: tmp_path / "own.pth")
    with pytest.raises(FeaturesUnavailableError, match="must have a sha256 that begins with 57934424"):
        EfficientNet()


@pytest.mark.parametrize("package", efficient_net.PACKAGES)
def test_a_missing_package_is_named_with_the_remedy(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficient_net, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(FeaturesUnavailableError, match=rf"needs the package {package}: pip install -e '.\[f"):
        EfficientNet()

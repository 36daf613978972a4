import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as original

from diffusion_lab.features import FeaturesUnavailableError, Inception
from diffusion_lab.features import inception as module
from diffusion_lab.features import weights as files


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of random weights that preserve the scale of activations through the layers."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(original, "load_state_dict_from_url", lambda *args, **options: {})
        monkeypatch.setattr(original.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        network = original.FeatureExtractorInceptionV3("inception", ["2048"])
    generator = torch.Generator().manual_seed(7)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> Inception:
    return Inception(weights)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 36, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_features_and_logits_agree_with_torch_fidelity_to_a_relative_error_of_1e_6(
    network: Inception, weights: Path, pixels: Tensor
) -> None:
    reference = original.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(weights))
    features = network(pixels)
    with torch.no_grad():
        pooled, logits = reference(pixels)
    assert float((features["pooled"] - pooled).norm() / pooled.norm()) < 1e-6
    assert float((features["logits"] - logits).norm() / logits.norm()) < 1e-6
    assert (pooled.shape, logits.shape) == ((2, 2048), (2, 1008))


def test_spatial_features_are_the_first_seven_channels_of_mixed_6(network: Inception, pixels: Tensor) -> None:
    outputs = []
    # mixed_6 of TensorFlow is Mixed_6d of torchvision, and its conv the first of the concatenated branches.
    hook = network.network.Mixed_6d.register_forward_hook(lambda *args: outputs.append(args[-1]))
    spatial = network(pixels)["spatial"]
    hook.remove()
    assert outputs[0].shape == (2, 768, 17, 17)
    assert torch.equal(spatial, outputs[0][:, :7].reshape(2, 2023))
    assert float(spatial.std()) > 0.1


def test_images_are_resized_on_the_grid_of_tensorflow_1(network: Inception, pixels: Tensor) -> None:
    inputs = []
    hook = network.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda layer, args: inputs.append(args[0]))
    network(pixels)
    hook.remove()
    levels = inputs[0] * 128 + 128
    # Pixel k of 299 is sampled at k * 36 / 299: the first pixels are aligned, not the pixel centers.
    row, column = 200 * 36 / 299, 100 * 28 / 299
    top, left = int(row), int(column)
    corner = pixels[:, :, top : top + 2, left : left + 2].double()
    upper, lower = (
        corner[:, :, side, 0] * (1 - column + left) + corner[:, :, side, 1] * (column - left) for side in (0, 1)
    )
    expected = upper * (1 - row + top) + lower * (row - top)
    torch.testing.assert_close(levels[:, :, 200, 100].double(), expected, rtol=0, atol=1e-3)
    torch_grid = F.interpolate(pixels.float(), (299, 299), mode="bilinear")
    assert float((levels - torch_grid).abs().mean()) > 5


def test_gray_images_are_repeated_to_three_channels(network: Inception, pixels: Tensor) -> None:
    gray = pixels[:, :1]
    assert torch.equal(network(gray)["pooled"], network(gray.repeat(1, 3, 1, 1))["pooled"])


@pytest.mark.full
def test_other_weights_are_reported_once(
    weights: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    module._log_once.cache_clear()
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert Inception(weights, sha256[:8]).weights_sha256 == sha256
    assert Inception(weights).weights_sha256 == sha256
    assert caplog.text.count("distances are not comparable with published FIDs") == 1
    caplog.clear()
    module._log_once.cache_clear()
    monkeypatch.setattr(Inception, "sha256", sha256[:8])
    Inception(weights)
    assert caplog.text == ""


def test_a_file_under_the_official_name_must_be_the_official_one(weights: Path, tmp_path: Path) -> None:
    official = tmp_path / Inception.file_name
    official.symlink_to(weights)
    with pytest.raises(
        FeaturesUnavailableError, match=r"SHA-256 that begins with 6726825d, got .*; the file is damaged"
    ):
        Inception(official)
    with pytest.raises(FeaturesUnavailableError, match="SHA-256 that begins with abcd, got "):
        Inception(weights, "abcd")


def test_torch_fidelity_does_not_unpickle_the_file_of_the_user(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, Any]] = []
    load = torch.load

    def recording(file: Any, **options: Any) -> Any:
        opened.append((file, options["weights_only"]))
        return load(file, **options)

    monkeypatch.setattr(torch, "load", recording)
    Inception(weights)
    assert [weights_only for file, weights_only in opened if str(file) == str(weights)] == [True]
    assert len(opened) == 2


def test_weights_are_downloaded_once_into_the_cache_of_torch_hub(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.symlink_to(weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(original, "URL_INCEPTION_V3", source.as_uri())
    monkeypatch.setattr(Inception, "sha256", hashlib.sha256(weights.read_bytes()).hexdigest()[:8])
    downloaded = Inception()
    assert (tmp_path / "hub" / "checkpoints" / Inception.file_name).read_bytes() == weights.read_bytes()
    monkeypatch.setattr(
        files, "download", lambda *args: pytest.fail("the file exists, and its folder may be read-only")
    )
    assert Inception().weights_sha256 == downloaded.weights_sha256


def test_a_failed_download_is_reported_with_url_path_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(original, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights.pth")  # no server listens there
    with pytest.raises(FeaturesUnavailableError) as caught:
        Inception()
    for part in (Inception.file_name, str(tmp_path / "hub" / "checkpoints"), "127.0.0.1:9", "features.weights"):
        assert part in str(caught.value)

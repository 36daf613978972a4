import hashlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lab.features import CLIP, DINOv2, FeaturesUnavailableError

transformers = pytest.importorskip("transformers", reason="needs pip install -e '.[features]'")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
NETWORKS: list[type[DINOv2 | CLIP]] = [DINOv2, CLIP]


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Use the architectures with a few narrow layers, but with the original sizes of images and patches."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for network in NETWORKS:
            monkeypatch.setattr(network, "architecture", network.architecture | SMALL)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a subfolder for each network that contains model.safetensors, as written by the library."""
    folder = tmp_path_factory.mktemp("hub")
    transformers.utils.logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(7)
    for network in NETWORKS:
        network_class, config = network.network_and_config(transformers)
        model = network_class(config)
        for parameter in model.parameters():
            parameter.data.normal_(generator=generator).mul_(0.2)
        model.save_pretrained(folder / network.name)
    return folder


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Two smooth images with some noise, black and white in places."""
    generator = torch.Generator().manual_seed(3)
    rough = torch.rand(2, 3, 6, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, (360, 360), mode="bicubic").clamp(0, 1)
    noise = 0.05 * torch.randn(smooth.shape, generator=generator)
    return ((smooth + noise) * 255).round().clamp(0, 255).to(torch.uint8)


def load(network: type[DINOv2 | CLIP], folder: Path) -> DINOv2 | CLIP:
    return network(folder / network.name / "model.safetensors")


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


@pytest.mark.parametrize("side", [32, 360])
@pytest.mark.parametrize("network", NETWORKS)
def test_images_are_resized_as_by_pil(network: type[DINOv2 | CLIP], side: int, folder: Path, pixels: Tensor) -> None:
    features, images = load(network, folder), pixels[:, :, :side, :side]
    resized = features.preprocess(images) * features.scale + features.shift  # type: ignore[operator]
    size = (network.side, network.side)
    pil = [np.array(as_pil(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
    error = (resized * 255 - torch.from_numpy(np.stack(pil)).permute(0, 3, 1, 2)).abs()
    assert float(error.max()) < 2.01  # a value half-way between two levels may be rounded differently, twice
    assert float((error > 0.5).double().mean()) < 1e-3


def test_preprocessing_for_dinov2_agrees_with_the_librarys_image_processor(folder: Path, pixels: Tensor) -> None:
    processor = transformers.BitImageProcessorPil(
        size={"height": 224, "width": 224}, resample=Image.Resampling.BICUBIC, do_center_crop=False,
        image_mean=transformers.image_utils.IMAGENET_DEFAULT_MEAN,
        image_std=transformers.image_utils.IMAGENET_DEFAULT_STD,
    )  # fmt: skip
    expected = processor([as_pil(image) for image in pixels], return_tensors="pt")["pixel_values"]
    error = (load(DINOv2, folder).preprocess(pixels) - expected).abs()
    assert float(error.max()) < 1.01 / 255 / 0.224  # one level
    assert float((error > 0.5 / 255).double().mean()) < 1e-3


def test_preprocessing_for_clip_agrees_with_the_librarys_image_processor(folder: Path, pixels: Tensor) -> None:
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
    expected = processor([as_pil(image) for image in pixels], return_tensors="pt")["pixel_values"]
    error = (load(CLIP, folder).preprocess(pixels) - expected).abs()
    assert float(error.max()) < 1.01 / 255 / 0.261
    assert float((error > 0.5 / 255).double().mean()) < 1e-3


def test_dinov2_returns_the_class_token_after_the_last_normalization(folder: Path, pixels: Tensor) -> None:
    features = load(DINOv2, folder)
    reference = transformers.Dinov2Model.from_pretrained(folder / "dinov2")
    reference.embeddings.position_embeddings.data = DINOv2.interpolate_positions(
        reference.embeddings.position_embeddings.data, 16
    )
    with torch.no_grad():
        expected = reference(features.preprocess(pixels)).pooler_output
    torch.testing.assert_close(features(pixels)["pooled"], expected, rtol=1e-4, atol=1e-5)


def keys_weights(distance: Tensor) -> Tensor:
    """Weights of cubic convolution (Keys 1981, eq. 8 and 15) with a = -0.75, as in torch."""
    a, s = -0.75, distance.abs()
    near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4)
    return torch.where(s < 1, near, torch.where(s < 2, far, 0))


def test_positions_of_dinov2_are_interpolated_as_by_its_original_code() -> None:
    values = torch.randn(37, generator=torch.Generator().manual_seed(5))
    grid = torch.stack([values[:, None].expand(37, 37), values[None, :].expand(37, 37)], dim=-1)  # by row, by column
    table = torch.cat([torch.full((1, 1, 2), -5.0), grid.reshape(1, 37 * 37, 2)], dim=1)
    interpolated = DINOv2.interpolate_positions(table, 16)
    assert interpolated.shape == (1, 257, 2)
    assert interpolated[0, 0].tolist() == [-5, -5]
    inner = torch.arange(1, 15).double()  # patches at the edge lack neighbors
    positions = (inner + 0.5) * 37 / 16.1 - 0.5
    expected = (keys_weights(positions[:, None] - torch.arange(37)) @ values.double()).float()
    rows, columns = interpolated[0, 1:].view(16, 16, 2).unbind(-1)
    torch.testing.assert_close(rows[1:15, 5], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(columns[5, 1:15], expected, rtol=0, atol=1e-4)


def test_dinov2_adds_the_interpolated_positions(folder: Path, pixels: Tensor) -> None:
    features, outputs = load(DINOv2, folder), []
    embeddings: Any = features.network.embeddings
    hook = embeddings.register_forward_hook(lambda *args: outputs.append(args[-1]))
    features(pixels)
    hook.remove()
    with torch.no_grad():
        patches = embeddings.patch_embeddings(features.preprocess(pixels))
    table = load_file(folder / "dinov2" / "model.safetensors")["embeddings.position_embeddings"]
    torch.testing.assert_close(
        outputs[0][:, 1:] - patches, DINOv2.interpolate_positions(table, 16)[:, 1:].expand(2, -1, -1)
    )


def test_clip_returns_the_projected_embedding_with_norm_1(folder: Path, pixels: Tensor) -> None:
    features = load(CLIP, folder)
    reference = transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "clip")
    with torch.no_grad():
        expected = reference(features.preprocess(pixels)).image_embeds
    pooled = features(pixels)["pooled"]
    assert pooled.shape == (2, 768)
    torch.testing.assert_close(pooled, expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("network", NETWORKS)
def test_gray_images_are_repeated_to_three_channels(network: type[DINOv2 | CLIP], folder: Path, pixels: Tensor) -> None:
    features, gray = load(network, folder), pixels[:, :1]
    assert torch.equal(features(gray)["pooled"], features(gray.repeat(1, 3, 1, 1))["pooled"])


def test_keys_of_the_file_of_the_hub_are_translated(folder: Path) -> None:
    """The file of facebook/dinov2-large has other keys than newer classes of the library."""
    state = load_file(folder / "dinov2" / "model.safetensors")
    key = "encoder.layer.0.attention.attention.query.weight"
    assert key in state
    loaded = load(DINOv2, folder).network.state_dict()["encoder.layer.0.attention.q_proj.weight"]
    assert torch.equal(loaded, state[key])


def test_the_vision_model_is_loaded_from_a_file_of_the_complete_clip(
    folder: Path, tmp_path: Path, pixels: Tensor
) -> None:
    state = load_file(folder / "clip" / "model.safetensors")
    others = {"text_model.embeddings.token_embedding.weight": torch.zeros(9, 4), "logit_scale": torch.tensor(4.6)}
    others["vision_model.embeddings.position_ids"] = torch.arange(577)
    torch.save(state | others, tmp_path / "pytorch_model.bin")
    features = CLIP(tmp_path / "pytorch_model.bin")
    assert torch.equal(features(pixels)["pooled"], load(CLIP, folder)(pixels)["pooled"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layernorm.bias": None}, "1 missing keys, such as layernorm.bias"),
        ({"layernorm.bias": torch.zeros(5)}, "1 mismatched keys, such as .*layernorm.bias"),
        ({"head.bias": torch.zeros(5)}, "1 unexpected keys, such as head.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Tensor | None], reason: str, folder: Path, tmp_path: Path
) -> None:
    state: dict[str, Any] = {**load_file(folder / "dinov2" / "model.safetensors"), **change}
    save_file({key: value for key, value in state.items() if value is not None}, tmp_path / "other.safetensors")
    with pytest.raises(
        FeaturesUnavailableError, match=f"other.safetensors contains weights of another network: {reason}"
    ):
        DINOv2(tmp_path / "other.safetensors")


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_that_cannot_be_downloaded_are_reported_with_the_remedy(
    network: type[DINOv2 | CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = f"{network.hub_file} of {network.hub_name}, which is not in the local cache .* features.weights"
    with pytest.raises(FeaturesUnavailableError, match=message):
        network()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_missing_library_is_reported_with_the_remedy(
    network: type[DINOv2 | CLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FeaturesUnavailableError, match=r"requires the library transformers; run pip install -e '.\["):
        network()


def test_the_sha256_of_the_file_is_stored_and_verified(folder: Path) -> None:
    path = folder / "dinov2" / "model.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert DINOv2(path, sha256[:8]).weights_sha256 == sha256
    with pytest.raises(FeaturesUnavailableError, match=f"begins with abcd, got {sha256}"):
        DINOv2(path, "abcd")


def test_the_library_prints_no_progress(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.utils.logging.enable_progress_bar()
    load(CLIP, folder)
    assert capfd.readouterr() == ("", "")


def test_the_library_logs_nothing_about_weights_that_do_not_fit(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(folder / "dinov2" / "model.safetensors") | {"layernorm.bias": torch.zeros(5)}
    save_file(state, tmp_path / "other.safetensors")
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    transformers.utils.logging.set_verbosity_warning()
    with pytest.raises(FeaturesUnavailableError):
        DINOv2(tmp_path / "other.safetensors")
    assert caplog.text == ""

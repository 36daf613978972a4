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
    """The architectures with a few narrow layers, at their own sizes of image and patch."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for network in NETWORKS:
            monkeypatch.setattr(network, "architecture", network.architecture | SMALL)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors of both in folders of their names, written by the library, whose names are those of the hub."""
    folder = tmp_path_factory.mktemp("hub")
    transformers.utils.logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(7)
    for network in NETWORKS:
        kind, config = network.described(transformers)
        model = kind(config)
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


def built(network: type[DINOv2 | CLIP], folder: Path) -> DINOv2 | CLIP:
    return network(folder / network.name / "model.safetensors")


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


@pytest.mark.parametrize("side", [32, 360])
@pytest.mark.parametrize("network", NETWORKS)
def test_images_are_resized_as_by_pil(network: type[DINOv2 | CLIP], side: int, folder: Path, pixels: Tensor) -> None:
    features, images = built(network, folder), pixels[:, :, :side, :side]
    ours = features.normalised(images) * features.scale + features.shift  # type: ignore[operator]
    size = (network.side, network.side)
    pil = [np.array(as_pil(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
    apart = (ours * 255 - torch.from_numpy(np.stack(pil)).permute(0, 3, 1, 2)).abs()
    assert float(apart.max()) < 2.01  # a value half-way between two levels is rounded up or down, twice
    assert float((apart > 0.5).double().mean()) < 1e-3


def test_dinov2_sees_what_the_librarys_image_processor_gives(folder: Path, pixels: Tensor) -> None:
    processor = transformers.BitImageProcessorPil(
        size={"height": 224, "width": 224}, resample=Image.Resampling.BICUBIC, do_center_crop=False,
        image_mean=transformers.image_utils.IMAGENET_DEFAULT_MEAN,
        image_std=transformers.image_utils.IMAGENET_DEFAULT_STD,
    )  # fmt: skip
    theirs = processor([as_pil(image) for image in pixels], return_tensors="pt")["pixel_values"]
    apart = (built(DINOv2, folder).normalised(pixels) - theirs).abs()
    assert float(apart.max()) < 1.01 / 255 / 0.224  # one level
    assert float((apart > 0.5 / 255).double().mean()) < 1e-3


def test_clip_sees_what_the_librarys_image_processor_gives(folder: Path, pixels: Tensor) -> None:
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
    theirs = processor([as_pil(image) for image in pixels], return_tensors="pt")["pixel_values"]
    apart = (built(CLIP, folder).normalised(pixels) - theirs).abs()
    assert float(apart.max()) < 1.01 / 255 / 0.261
    assert float((apart > 0.5 / 255).double().mean()) < 1e-3


def test_dinov2_answers_the_class_token_after_the_last_normalisation(folder: Path, pixels: Tensor) -> None:
    features = built(DINOv2, folder)
    reference = transformers.Dinov2Model.from_pretrained(folder / "dinov2")
    reference.embeddings.position_embeddings.data = DINOv2.resampled(reference.embeddings.position_embeddings.data, 16)
    with torch.no_grad():
        theirs = reference(features.normalised(pixels)).pooler_output
    torch.testing.assert_close(features(pixels)["pooled"], theirs, rtol=1e-4, atol=1e-5)


def keys_weights(distance: Tensor) -> Tensor:
    """Cubic convolution with a = -0.75 (Keys 1981, eq. 8 and 15), torch's choice."""
    a, s = -0.75, distance.abs()
    near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * (s**3 - 5 * s**2 + 8 * s - 4)
    return torch.where(s < 1, near, torch.where(s < 2, far, 0))


def test_positions_of_dinov2_are_read_where_its_own_code_reads_them() -> None:
    values = torch.randn(37, generator=torch.Generator().manual_seed(5))
    grid = torch.stack([values[:, None].expand(37, 37), values[None, :].expand(37, 37)], dim=-1)  # by row, by column
    table = torch.cat([torch.full((1, 1, 2), -5.0), grid.reshape(1, 37 * 37, 2)], dim=1)
    resampled = DINOv2.resampled(table, 16)
    assert resampled.shape == (1, 257, 2)
    assert resampled[0, 0].tolist() == [-5, -5]
    inner = torch.arange(1, 15).double()  # patches next to the edge lack neighbours
    places = (inner + 0.5) * 37 / 16.1 - 0.5
    expected = (keys_weights(places[:, None] - torch.arange(37)) @ values.double()).float()
    rows, columns = resampled[0, 1:].view(16, 16, 2).unbind(-1)
    torch.testing.assert_close(rows[1:15, 5], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(columns[5, 1:15], expected, rtol=0, atol=1e-4)


def test_dinov2_adds_those_positions(folder: Path, pixels: Tensor) -> None:
    features, seen = built(DINOv2, folder), []
    embeddings: Any = features.network.embeddings
    hook = embeddings.register_forward_hook(lambda *args: seen.append(args[-1]))
    features(pixels)
    hook.remove()
    with torch.no_grad():
        patches = embeddings.patch_embeddings(features.normalised(pixels))
    table = load_file(folder / "dinov2" / "model.safetensors")["embeddings.position_embeddings"]
    torch.testing.assert_close(seen[0][:, 1:] - patches, DINOv2.resampled(table, 16)[:, 1:].expand(2, -1, -1))


def test_clip_answers_the_projected_embedding_of_length_one(folder: Path, pixels: Tensor) -> None:
    features = built(CLIP, folder)
    reference = transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "clip")
    with torch.no_grad():
        theirs = reference(features.normalised(pixels)).image_embeds
    ours = features(pixels)["pooled"]
    assert ours.shape == (2, 768)
    torch.testing.assert_close(ours, theirs / theirs.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("network", NETWORKS)
def test_grey_images_are_repeated_to_three_channels(network: type[DINOv2 | CLIP], folder: Path, pixels: Tensor) -> None:
    features, grey = built(network, folder), pixels[:, :1]
    assert torch.equal(features(grey)["pooled"], features(grey.repeat(1, 3, 1, 1))["pooled"])


def test_names_in_the_hubs_file_are_understood(folder: Path) -> None:
    """As the file of facebook/dinov2-large has them; the library's newer classes have other names."""
    names = load_file(folder / "dinov2" / "model.safetensors")
    key = "encoder.layer.0.attention.attention.query.weight"
    assert key in names
    ours = built(DINOv2, folder).network.state_dict()["encoder.layer.0.attention.q_proj.weight"]
    assert torch.equal(ours, names[key])


def test_a_pickle_of_clip_whole_gives_its_part_that_sees(folder: Path, tmp_path: Path, pixels: Tensor) -> None:
    state = load_file(folder / "clip" / "model.safetensors")
    others = {"text_model.embeddings.token_embedding.weight": torch.zeros(9, 4), "logit_scale": torch.tensor(4.6)}
    others["vision_model.embeddings.position_ids"] = torch.arange(577)
    torch.save(state | others, tmp_path / "pytorch_model.bin")
    whole = CLIP(tmp_path / "pytorch_model.bin")
    assert torch.equal(whole(pixels)["pooled"], built(CLIP, folder)(pixels)["pooled"])


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
    with pytest.raises(FeaturesUnavailableError, match=f"other.safetensors are weights of another network: {reason}"):
        DINOv2(tmp_path / "other.safetensors")


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_neither_here_nor_within_reach_are_named_with_the_remedy(
    network: type[DINOv2 | CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = f"{network.hub_file} of {network.hub_name} on the Hugging Face hub is neither .* features.weights"
    with pytest.raises(FeaturesUnavailableError, match=message):
        network()


@pytest.mark.parametrize("network", NETWORKS)
def test_without_the_library_the_remedy_is_said(network: type[DINOv2 | CLIP], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FeaturesUnavailableError, match=r"needs the library transformers: pip install -e '.\["):
        network()


def test_the_sha256_of_the_file_is_kept_and_can_be_asked_for(folder: Path) -> None:
    path = folder / "dinov2" / "model.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert DINOv2(path, sha256[:8]).weights_sha256 == sha256
    with pytest.raises(FeaturesUnavailableError, match=f"begins with abcd, got {sha256}"):
        DINOv2(path, "abcd")


def test_the_library_shows_no_progress(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.utils.logging.enable_progress_bar()
    built(CLIP, folder)
    assert capfd.readouterr() == ("", "")


def test_a_refusal_is_all_that_is_said_of_weights_that_do_not_fit(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(folder / "dinov2" / "model.safetensors") | {"layernorm.bias": torch.zeros(5)}
    save_file(state, tmp_path / "other.safetensors")
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    transformers.utils.logging.set_verbosity_warning()
    with pytest.raises(FeaturesUnavailableError):
        DINOv2(tmp_path / "other.safetensors")
    assert caplog.text == ""

import os
import pickle
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusion_lab import checkpoint_files
from diffusion_lab.checkpoint_files import DamagedCheckpointError
from diffusion_lab.features import CLIP, DINOv2, EfficientNet, FashionCNN, FeaturesUnavailableError, Inception
from diffusion_lab.features import weights as files

NETWORKS = [FashionCNN, Inception, EfficientNet, DINOv2, CLIP]
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes, FIPS 180-4


@pytest.mark.parametrize("network", NETWORKS)
def test_missing_weights_are_reported_with_their_path(network: Any, tmp_path: Path) -> None:
    with pytest.raises(FeaturesUnavailableError, match=f"features.weights must be .*, got {tmp_path / 'nothing.pt'}"):
        network(tmp_path / "nothing.pt")


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_of_another_network_are_refused_in_one_line(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hasattr(network, "architecture"):  # two narrow layers, to save time
        narrow = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        monkeypatch.setattr(network, "architecture", network.architecture | narrow)
    torch.save({"strange": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(FeaturesUnavailableError, match=r"other\.pt contains weights of another network: ") as caught:
        network(tmp_path / "other.pt")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("network", NETWORKS)
def test_code_in_a_pickle_is_not_run(network: Any, tmp_path: Path) -> None:
    path = tmp_path / "malicious.pt"
    torch.save({"weight": Malicious(tmp_path / "created")}, path)
    with pytest.raises(FeaturesUnavailableError, match=r"malicious\.pt cannot be read as weights: "):
        network(path)
    assert not (tmp_path / "created").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "created").exists()  # the check above can fail


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_truncated_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    weights = {"weight": torch.arange(100.0)}
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)
    assert torch.equal(files.read(path)["weight"], weights["weight"])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FeaturesUnavailableError, match=f"{name} cannot be read as weights: "):
        files.read(path)


def test_compressed_records_which_can_take_any_memory_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "packed.pt").stat().st_size < 10_000
    message = r"packed\.pt cannot be read as weights: its records must not be compressed, .*, got 'plain/data\.pkl'"
    with pytest.raises(FeaturesUnavailableError, match=message):
        files.read(tmp_path / "packed.pt")
    with pytest.raises(DamagedCheckpointError, match=r"packed\.pt is damaged: its records must not be compressed"):
        checkpoint_files.read(tmp_path / "packed.pt")
    assert len(files.read(tmp_path / "plain.pt")["weight"]) == 10**6


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3}])
def test_files_without_weights_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "run.ckpt")
    with pytest.raises(FeaturesUnavailableError, match=r"run\.ckpt must contain a dict of tensors"):
        files.read(tmp_path / "run.ckpt")


def test_a_pickle_of_plain_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(FeaturesUnavailableError, match=r"plain\.pkl"):
        files.read(tmp_path / "plain.pkl")


def test_the_sha256_is_returned_and_verified(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt"
    path.touch()
    assert files.verify_sha256(path, None, "E3B0c442") == EMPTY_SHA256
    with pytest.raises(
        FeaturesUnavailableError, match=f"begins with 6726825d, got {EMPTY_SHA256}; the file is damaged"
    ):
        files.verify_sha256(path, "e3b0", "6726825d")


@pytest.mark.parametrize("prefix", [57934424, "", "6726825x"])
def test_an_invalid_prefix_of_a_sha256_is_refused(prefix: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match=rf"sha256 must be 1 to 64 hexadecimal digits \(in quotes .*\), got {prefix}."):
        files.verify_sha256(tmp_path / "empty.pt", prefix)


def test_simultaneous_requests_download_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = []

    def download(url: str, path: str, **options: Any) -> None:
        downloaded.append(url)
        time.sleep(0.1)  # the other threads start waiting
        Path(path).write_bytes(b"content")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: files.download("url", tmp_path / "new" / "file.pth", "abcd"), range(4)))
    assert downloaded == ["url"]
    assert (tmp_path / "new" / "file.pth").read_bytes() == b"content"


def test_a_download_with_another_sha256_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    url, path = (tmp_path / "source").as_uri(), tmp_path / "new" / "file.pth"
    with pytest.raises(OSError, match="invalid hash value"):
        files.download(url, path, "6726825d")
    assert [left.name for left in path.parent.iterdir()] in ([], ["file.pth.lock"])
    files.download(url, path, "e3b0c442")
    assert path.read_bytes() == b""

"""The export of any network: its config and its weights, read back; damaged folders are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.errors import UserError
from diffusion_lab.interop import safetensors_folder

NODE = {"_target_": "diffusion_lab.process.Epsilon"}
SETTINGS: dict[str, Any] = {**dict.fromkeys(safetensors_folder.REQUIRED, NODE), "step": 3, "class_names": ["a | b"]}
STATE = {"weight": torch.tensor([1.0, float("nan"), -0.0, 1e-42]), "half": torch.ones(2, dtype=torch.bfloat16)}


def test_settings_and_weights_are_read_back_to_the_bit(tmp_path: Path) -> None:
    safetensors_folder.write(tmp_path, SETTINGS, STATE)
    assert safetensors_folder.recognizes(tmp_path)
    settings, state = safetensors_folder.read(tmp_path)
    assert settings == SETTINGS
    for name, tensor in STATE.items():
        assert state[name].dtype == tensor.dtype
        assert state[name].view(torch.uint8).equal(tensor.view(torch.uint8))


def test_the_autoencoder_in_the_folder_is_that_of_the_latent_space(tmp_path: Path) -> None:
    safetensors_folder.write(tmp_path, SETTINGS, STATE)
    (tmp_path / "vae").mkdir()
    space = safetensors_folder.read(tmp_path)[0]["space"]
    assert space["autoencoder"]["pretrained_model_name_or_path"] == str(tmp_path / "vae")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, r"must have the format diffusion_lab, got other"),
        ({"model": None}, r"must name a class in `model`, got None"),
        ({"sampler": {"num_steps": 3}}, r"must name a class in `sampler`, got \{'num_steps': 3\}"),
    ],
)
def test_a_config_that_was_not_written_by_an_export_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    safetensors_folder.write(tmp_path, SETTINGS, STATE)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        safetensors_folder.read(tmp_path)


def test_missing_settings_and_damaged_files_are_named(tmp_path: Path) -> None:
    safetensors_folder.write(tmp_path, {"step": 3}, STATE)
    with pytest.raises(UserError, match=r"must have the settings model, .*, got no model"):
        safetensors_folder.read(tmp_path)
    safetensors_folder.write(tmp_path, SETTINGS, STATE)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"model.safetensors cannot be read: "):
        safetensors_folder.read(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors cannot be read: "):
        safetensors_folder.read(tmp_path)

"""The overrides of `train` for an imported folder compose the settings of the folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from diffusion_lab.interop import diffusers_scheduler
from diffusion_lab.interop.settings_overrides import train_overrides
from diffusion_lab.paths import CONF


@pytest.mark.parametrize(
    "content",
    [
        {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "steps_offset": 1, "clip_sample": False},
        {
            "_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.25, 0.5], "num_train_timesteps": 3,
            "variance_type": "fixed_large", "prediction_type": "v_prediction", "timestep_spacing": "trailing",
        },
    ],
)  # fmt: skip
def test_overrides_compose_the_settings_of_a_scheduler(content: dict[str, Any], tmp_path: Path) -> None:
    content = json.loads(json.dumps(content))
    settings = diffusers_scheduler.own_settings(content, tmp_path, learns_variance=False)
    folder = tmp_path / "vae with 'quotes'"
    autoencoder = {
        "_target_": "diffusers.AutoencoderKL.from_pretrained",
        "pretrained_model_name_or_path": str(folder),
    }
    settings["space"] = {
        "_target_": "diffusion_lab.latents.Latents",
        "autoencoder": autoencoder,
        "scale": 0.5,
        "shift": 0.0,
    }
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = compose("train", overrides=[*train_overrides(settings), "run_folder=somewhere"])
        composed: Any = OmegaConf.to_container(config, resolve=True)
    for name, node in settings.items():
        assert composed[name] == node, name

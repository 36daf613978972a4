"""Modules that are built from a resolved config."""

import pytest
from hydra import compose, initialize_config_dir
from torch import nn

from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs.load import build_module, resolve


def test_a_model_without_the_attributes_of_a_network_is_rejected() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve(compose("train", overrides=["run_folder=somewhere"]))
    message = r"`model` must implement diffusion_lab\.networks\.Network, got Conv2d, which has no resolution; class"
    with pytest.raises(UserError, match=message):
        build_module(config, nn.Conv2d(1, 1, 1))

"""The config of a run whose network a command uses."""

from pathlib import Path

from omegaconf import DictConfig

from diffusion_lab.runs.load import load_config, read_config
from diffusion_lab.runs.run_checkpoints import require_settings


def load_trained_config(folder: Path) -> DictConfig:
    """Return the config of a run.  Raises UserError as `load_config`, and if it has not the settings of a run."""
    config = load_config(folder)
    require_settings(config, folder)
    return config


def read_trained_config(folder: Path) -> DictConfig:
    """Return the config of a run of which no object is built, so that its code needs no trust."""
    config = read_config(folder / "config.yaml")
    require_settings(config, folder)
    return config

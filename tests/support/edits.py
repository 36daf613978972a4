"""The command edit in this process, on the stored runs of version 0.3."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.commands.edit import edit
from diffusion_lab.config.compose import error_message
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF


def composed(output: Path, *overrides: str) -> DictConfig:
    """Return the config of the command edit, and set the config of Hydra that a job has."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [*overrides, f"work_folder={output}/work", f"hydra.run.dir={output}", "hydra.mode=RUN"]
        config = compose("edit", given, return_hydra_config=True)
    with open_dict(config):
        config.hydra.runtime.output_dir = str(output)
        config.hydra.job.name = config.hydra.job.config_name = "edit"
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


def run_edit(output: Path, *overrides: str) -> Any:
    """Execute `python src/edit.py OVERRIDES` with the output folder `output`, and return its result."""
    return edit(composed(output, *overrides))


def edit_error(output: Path, *overrides: str) -> str:
    """Return the error message with which `python src/edit.py OVERRIDES` ends; "" if it succeeds."""
    try:
        run_edit(output, *overrides)
    except (UserError, OmegaConfBaseException, HydraException) as error:
        return error_message(error, "edit")
    return ""

"""Setup of a cascade: the super-resolution runs that the setting `cascade` lists, and their configs."""

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.runs.find import Target, find_run
from diffusion_lab.runs.load import is_classifier_config
from diffusion_lab.runs.setup.trained_config import load_trained_config


def cascade_stages(config: DictConfig) -> list[Target]:
    """Return the checkpoints of the super-resolution runs, in the order of config.cascade.

    Raises UserError if a run or its checkpoint is missing.
    """
    paths = config.cascade if OmegaConf.is_list(config.cascade) else [config.cascade] if config.cascade else []
    return [find_run("cascade", path) for path in paths]


def stage_configs(config: DictConfig) -> list[tuple[Target, DictConfig]]:
    """Return the checkpoints of the super-resolution runs and the configs of these runs, which are not resolved.

    The configs have config.cascade_steps sampling steps, if they are given.
    """
    return [(stage, _stage_config(config, stage)) for stage in cascade_stages(config)]


def _stage_config(config: DictConfig, stage: Target) -> DictConfig:
    trained = load_trained_config(stage.folder)
    if is_classifier_config(trained):
        raise UserError(f"`cascade` must list super-resolution runs, got {stage.folder}, which contains a classifier.")
    if trained.get("low_resolution") is None:
        raise UserError(
            f"`cascade` must list super-resolution runs (low_resolution=area or noised), got {stage.folder}."
        )
    if config.cascade_steps is not None:
        trained.sampler.num_steps = config.cascade_steps
    return trained

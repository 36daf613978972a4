"""A note on the settings of a chosen sampler that differ from the settings which the same sampler has in the run."""

import logging

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.overrides import override_key

logger = logging.getLogger(__name__)


def note_default_settings(given: DictConfig, used: DictConfig, trained: DictConfig) -> None:
    """Log each setting for which a chosen sampler has its default, if the run has the same sampler with another value.

    given: sampler in the config of the command.  used: sampler that generates the images.  trained: sampler of the run.
    """
    if given.get("_target_") != trained._target_:  # no or another sampler is chosen
        return
    typed = {override_key(override) for override in HydraConfig.get().overrides.task}
    for key, value in ((str(key), value) for key, value in trained.items()):
        if not OmegaConf.is_dict(value) and used.get(key) != value and f"sampler.{key}" not in typed:
            message = "sampler.%s is %s, the default of the chosen sampler, and %s in the run; sampler.%s=%s keeps it."
            logger.info(message, key, used.get(key), value, key, value)

"""Config nodes for classes from torch and Lightning, whose arguments conf/ does not list completely."""

import inspect
import logging
import re
from collections.abc import Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, open_dict

from diffusion_lab.errors import UserError

logger = logging.getLogger(__name__)

NODES = ("optimizer", "lr_schedule", "trainer")
"""Config keys of such nodes. Overrides of arguments that conf/ does not list need no plus there."""

SBATCH_OPTIONS = "hydra.launcher.more"
"""Setting of all commands with any options of sbatch."""

COMMANDS = ("train", "train_classifier", "prepare")
"""Commands whose config has these keys."""

_PROVIDED = {"Optimizer": ("params",), "LRScheduler": ("optimizer", "last_epoch")}
"""Base class of torch -> arguments that this package passes, so that they are no settings."""

_OWN = {"Optimizer": ("decay_matrices_only",)}
"""Base class of torch -> settings of `OptimizerFactory`, which are no arguments of the class."""


def with_plus(config_name: str, overrides: Sequence[str]) -> list[str]:
    """Return overrides that may also add a setting: ++optimizer.eps=1e-6 for optimizer.eps=1e-6."""
    open_ended = [*(NODES if config_name in COMMANDS else ()), SBATCH_OPTIONS]
    return [
        re.sub(rf"^\+*(?=(({'|'.join(open_ended)})\.[^=]*|{SBATCH_OPTIONS})=)", "++", override)
        for override in overrides
    ]


def without_plus(override: str) -> str:
    """Return an override as the user may type it: the inverse of `with_plus`."""
    return re.sub(rf"^\++(?=({'|'.join(NODES)})\.|{SBATCH_OPTIONS}\b)", "", override)


def drop_unused_settings(config: DictConfig, overrides: Sequence[str]) -> None:
    """Delete the settings that the class in an override NODE._target_=CLASS does not accept, and log their names.

    conf/ sets arguments of the class that it names, and another class may have other arguments. Settings that the user
    gave are not deleted: a setting that the class does not accept is then an error.
    overrides: overrides from which the config was composed.
    """
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for name in NODES:
        if f"{name}._target_" not in given or not isinstance(node := config.get(name), DictConfig):
            continue
        try:
            target = import_target(str(node._target_))
        except (ImportError, ValueError):
            continue  # reported by the validation of the config
        if name == "optimizer" and "Optimizer" not in _torch_bases(target):
            raise UserError(
                "optimizer._target_ must be a subclass of torch.optim.Optimizer (such as torch.optim.AdamW), got "
                f"{node._target_}."
            )
        accepted = settings_of(target)
        kept = {*accepted, *(override.removeprefix(f"{name}.") for override in given)}
        unused = [key for key in map(str, node) if not key.startswith("_") and key not in kept]
        with open_dict(node):
            for key in unused:
                del node[key]
        if unused:
            logger.info("%s: %s does not take %s (set in conf/).", name, target.__name__, ", ".join(unused))


def import_target(name: str) -> Any:
    """Return the class or function with an import path.  Raises ImportError or ValueError if there is none."""
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # Hydra would log a failed import with a traceback
    return get_object(name)


def _torch_bases(target: Any) -> list[str]:
    return [base.__name__ for base in getattr(target, "__mro__", ()) if base.__module__.startswith("torch.optim")]


def settings_of(target: Any) -> list[str]:
    """Return the names of the settings of a class or function: its arguments, except those that the package passes."""
    parameters = inspect.signature(target).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    bases = _torch_bases(target)
    provided = {argument for base in bases for argument in _PROVIDED.get(base, ())}
    own = [setting for base in bases for setting in _OWN.get(base, ())]
    return [name for name in names if name not in provided] + own

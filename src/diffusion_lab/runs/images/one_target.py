"""The checkpoint of a command that generates the images of one network."""

from omegaconf import DictConfig

from diffusion_lab.errors import UserError
from diffusion_lab.runs.find import Target, find_targets, portable_path


def find_one_target(config: DictConfig) -> Target:
    """Return the only checkpoint that the settings `run` and `checkpoint` of a config select.

    Raises UserError as `find_targets`, and if they select several.
    """
    target, *others = find_targets(config)
    if others:
        found = ", ".join(portable_path(each.checkpoint) for each in (target, *others)[:4])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(f"`run` and `checkpoint` must select one checkpoint, got {found}{more}.")
    return target

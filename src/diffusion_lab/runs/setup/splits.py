"""Check of the settings that name a split of a data set."""

import re
from typing import TYPE_CHECKING

from diffusion_lab.errors import UserError
from diffusion_lab.reporting.text import terminal_text

if TYPE_CHECKING:
    from diffusion_lab.data.image_store import ImageStore


def require_split(name: str, setting: str, store: "ImageStore", others: str = "") -> None:
    """Raise UserError if a data set has no split with a name.

    Combinations of splits such as train[:100], which the library `datasets` accepts, are not checked.
    setting: setting that names the split.  others: other accepted values of a setting that names images for a run.
    """
    if name == "train" or not re.fullmatch(r"[\w.-]+", name):  # a store of another package may not list its split train
        return
    try:
        splits = store.splits()
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    if name in splits:
        return
    names = terminal_text(", ".join(splits))
    of_run = f"a split of the run's data set ({names}), or {others}"
    accepted = of_run if others else f"one of {names} (the splits of the data set)"
    hint = "; data.num_held_out=NUMBER holds out images of the split train for it" * (name == "held_out")
    raise UserError(f"`{setting}` must be {accepted}, got {terminal_text(name)}{hint}.")

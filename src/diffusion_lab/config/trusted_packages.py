"""The setting `trust`: packages whose code a run folder of other people may name, see `runs.trust`."""

import os
import re
import sys
from collections.abc import Sequence

from diffusion_lab.config.overrides import unquote
from diffusion_lab.errors import UserError

VARIABLE = "DIFFUSION_LAB_TRUST"
"""Environment variable with the trusted packages, separated by commas. Child processes and Slurm jobs inherit it."""


def take_packages() -> None:
    """Move the setting `trust` from sys.argv to the environment.  Raises UserError if it names no packages."""
    for argument in [argument for argument in sys.argv[1:] if re.match(r"\+*trust=", argument)]:
        sys.argv.remove(argument)
        value = unquote(argument.partition("=")[2])
        names = [unquote(name.strip()) for name in value.removeprefix("[").removesuffix("]").split(",") if name.strip()]
        os.environ[VARIABLE] = ",".join(checked_names([] if value in ("null", "[]") else names, value))


def trusted_packages() -> list[str]:
    """Return the packages that the setting `trust` or the environment variable names."""
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def checked_names(names: Sequence[str], given: object) -> list[str]:
    if invalid := [name for name in names if not re.fullmatch(r"[A-Za-z_]\w*|[\w.~-]*/[\w./~-]+", name)]:
        raise UserError(f"`trust` must be a list of packages (trust=[my_project]), got {invalid[0]!r} in {given}.")
    return list(names)

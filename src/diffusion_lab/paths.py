"""Paths of the package, of its configs and of the logs, the cache folder, and the installation of extras."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

IS_CHECKOUT = not (PACKAGE / "conf").is_dir()
"""Whether the package is used from a checkout of the repository. Wheels contain conf/ in the package folder."""

CONF = PACKAGE.parents[1] / "conf" if IS_CHECKOUT else PACKAGE / "conf"

ROOT = PACKAGE.parents[1] if IS_CHECKOUT else Path.cwd()
"""Folder that contains logs/ by default: the repository, or the current folder if a wheel installed the package."""

LOGS_VARIABLE = "DIFFUSION_LAB_LOGS"
"""Environment variable with the folder of the logs. The setting `logs` sets it, so that child processes inherit it."""


def logs_folder() -> Path:
    """Return the folder of the logs of all commands: DIFFUSION_LAB_LOGS if it is set, else logs/ in ROOT."""
    folder = os.environ.get(LOGS_VARIABLE)
    return Path(folder).expanduser().absolute() if folder else ROOT / "logs"


def install_command(extra: str) -> str:
    """Return the command that installs the packages of a group of optional dependencies in pyproject.toml."""
    return f"pip install -e '.[{extra}]'" if IS_CHECKOUT else f"pip install 'diffusion-lab-framework[{extra}]'"


NODE_CACHE = "DIFFUSION_LAB_NODE_CACHE"
"""Environment variable with a folder on the disk of a node, to which decoded image sets are copied from the cache."""


def default_cache_folder() -> Path:
    """Return DIFFUSION_LAB_CACHE if it is set, else the folder diffusion_lab in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("DIFFUSION_LAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "diffusion_lab"

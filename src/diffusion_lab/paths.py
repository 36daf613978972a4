"""Paths of the package, of its configs and of logs/, the cache folder, and the installation of extras."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

IS_CHECKOUT = not (PACKAGE / "conf").is_dir()
"""Whether the package is used from a checkout of the repository. Wheels contain conf/ in the package folder."""

CONF = PACKAGE.parents[1] / "conf" if IS_CHECKOUT else PACKAGE / "conf"

ROOT = PACKAGE.parents[1] if IS_CHECKOUT else Path.cwd()
"""Folder that contains logs/: the repository, or the current folder if the package was installed from a wheel."""


def install_command(extra: str) -> str:
    """Return the command that installs the packages of a group of optional dependencies in pyproject.toml."""
    return f"pip install -e '.[{extra}]'" if IS_CHECKOUT else f"pip install 'diffusion-lab-framework[{extra}]'"


def default_cache_folder() -> Path:
    """Return DIFFUSION_LAB_CACHE if it is set, else the folder diffusion_lab in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("DIFFUSION_LAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "diffusion_lab"

"""Paths of the repository and the configs, and the default cache folder."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parents[1]
CONF = ROOT / "conf"


def default_cache_folder() -> Path:
    """Return DIFFUSION_LAB_CACHE if it is set, else the folder diffusion_lab in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("DIFFUSION_LAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "diffusion_lab"

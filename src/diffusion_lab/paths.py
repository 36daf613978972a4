"""Places of the checkout: configs, logs, and the cache of decoded images."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parents[1]
CONF = ROOT / "conf"


def default_cache_folder() -> Path:
    """DIFFUSION_LAB_CACHE, or diffusion_lab in XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("DIFFUSION_LAB_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "diffusion_lab"

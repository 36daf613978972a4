"""Diffusion Lab: train, ablate, sample and evaluate denoising diffusion models of images.

The public names of all folders can be imported from here: `from diffusion_lab import DDIM, GaussianProcess`. The module
of a name is imported when the name is used for the first time, so that `import diffusion_lab` does not import torch.
"""
# ruff: noqa: F403

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.4.0"

_PACKAGES = (
    *(
        "process",
        "networks",
        "objectives",
        "guidance",
        "samplers",
        "ema",
        "inverse_problems",
        "data",
        "features",
        "metrics",
        "training",
    ),
    *("generation", "evaluation", "callbacks"),
)
"""Packages whose public names, the names in their `__all__`, are exported."""

_MODULES = {
    "denoiser": ("Denoiser", "DenoiserLike", "Estimate"),
    "latents": ("Latents", "Pixels", "Space"),
    "low_resolution": ("LowResolution",),
    "pixels": ("from_uint8", "to_uint8"),
    "randomness": ("Draws", "ImageNoise"),
    "runs": ("load_module",),
    "errors": ("UserError",),
}
"""Other module or package -> exported names."""


@cache
def _exports() -> dict[str, str]:
    """Return the module of each exported name.  The packages are parsed instead of imported, which would be slow."""
    import ast

    names = {name: module for module, exported in _MODULES.items() for name in exported}
    for package in _PACKAGES:
        source = Path(__file__).with_name(package).joinpath("__init__.py").read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= dict.fromkeys(ast.literal_eval(node.value), package)
    return names


if TYPE_CHECKING:
    from diffusion_lab.callbacks import *
    from diffusion_lab.data import *
    from diffusion_lab.denoiser import Denoiser as Denoiser
    from diffusion_lab.denoiser import DenoiserLike as DenoiserLike
    from diffusion_lab.denoiser import Estimate as Estimate
    from diffusion_lab.ema import *
    from diffusion_lab.errors import UserError as UserError
    from diffusion_lab.evaluation import *
    from diffusion_lab.features import *
    from diffusion_lab.generation import *
    from diffusion_lab.guidance import *
    from diffusion_lab.inverse_problems import *
    from diffusion_lab.latents import Latents as Latents
    from diffusion_lab.latents import Pixels as Pixels
    from diffusion_lab.latents import Space as Space
    from diffusion_lab.low_resolution import LowResolution as LowResolution
    from diffusion_lab.metrics import *
    from diffusion_lab.networks import *
    from diffusion_lab.objectives import *
    from diffusion_lab.pixels import from_uint8 as from_uint8
    from diffusion_lab.pixels import to_uint8 as to_uint8
    from diffusion_lab.process import *
    from diffusion_lab.randomness import Draws as Draws
    from diffusion_lab.randomness import ImageNoise as ImageNoise
    from diffusion_lab.runs import load_module as load_module
    from diffusion_lab.samplers import *
    from diffusion_lab.training import *
else:

    def __getattr__(name: str) -> Any:
        """Import the module `name`, or the module that defines the public name `name`."""
        if name == "__all__":
            return [*_exports(), "__version__"]
        if name in (*_PACKAGES, *_MODULES):
            return import_module(f"diffusion_lab.{name}")
        if name.startswith("_") or name not in _exports():
            from difflib import get_close_matches

            close = [] if name.startswith("_") else get_close_matches(name, _exports(), n=1, cutoff=0.8)
            hint = "".join(f"; perhaps you mean {other}" for other in close)
            raise AttributeError(f"module 'diffusion_lab' has no attribute '{name}'{hint}")
        globals()[name] = getattr(import_module(f"diffusion_lab.{_exports()[name]}"), name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES, *_MODULES, *_exports()})

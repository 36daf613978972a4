"""Original networks that can be loaded in this process, for `verify against=NAME`."""

from collections.abc import Callable
from pathlib import Path

from diffusion_lab.interop import diffusers_original
from diffusion_lab.interop.computed_witness import Original

ORIGINALS: dict[str, Callable[[Path], Original]] = {"diffusers": diffusers_original.load}
"""Name of a library -> function that loads the network of an imported file or folder."""

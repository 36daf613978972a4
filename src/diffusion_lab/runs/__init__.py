"""Run folders: setup, training, resuming, loading and results.

Importing this package loads neither torch nor Lightning.
"""

from diffusion_lab.runs.guidance_setup import guidance
from diffusion_lab.runs.load import load_module

__all__ = ["guidance", "load_module"]

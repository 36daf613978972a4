"""Run folders: set up, train, resume, load, results. Importing it loads neither torch nor Lightning."""

from diffusion_lab.runs.guidance_setup import guidance
from diffusion_lab.runs.load import load_module

__all__ = ["guidance", "load_module"]

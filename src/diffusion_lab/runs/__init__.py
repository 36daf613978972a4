"""Run folders: setup, training, resuming, loading and results.

Importing this package loads neither torch nor Lightning.
"""

from diffusion_lab.runs.load import load_module
from diffusion_lab.runs.setup.guidance import guidance

__all__ = ["guidance", "load_module"]

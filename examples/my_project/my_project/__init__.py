"""A research project outside Diffusion Lab: its own network, schedule, sampler, optimizer, images and callback."""

from my_project.images import Shapes
from my_project.network import FlatResNet
from my_project.optimization import CosineRestarts, Lion
from my_project.sampler import Midpoint
from my_project.schedule import LinearLogSNRSchedule
from my_project.weight_norm import LogWeightNorm

__version__ = "0.1"

__all__ = ["CosineRestarts", "FlatResNet", "LinearLogSNRSchedule", "Lion", "LogWeightNorm", "Midpoint", "Shapes"]

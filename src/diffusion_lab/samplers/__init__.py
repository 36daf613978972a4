"""Samplers: noise -> images, given a denoiser. One algorithm a file."""

from diffusion_lab.samplers.ancestral import Ancestral
from diffusion_lab.samplers.clipping import Clipping, NoClipping, StaticClipping
from diffusion_lab.samplers.ddim import DDIM
from diffusion_lab.samplers.guidance import ClassifierFreeGuidance
from diffusion_lab.samplers.sampler import Noise, OnStep, Sampler
from diffusion_lab.samplers.time_grids import ListedTimes, TimeGrid, UniformTimes

__all__ = [
    "DDIM",
    "Ancestral",
    "ClassifierFreeGuidance",
    "Clipping",
    "ListedTimes",
    "NoClipping",
    "Noise",
    "OnStep",
    "Sampler",
    "StaticClipping",
    "TimeGrid",
    "UniformTimes",
]

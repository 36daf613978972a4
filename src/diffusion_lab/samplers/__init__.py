"""Samplers: noise -> images, given a denoiser. One algorithm a file."""

from diffusion_lab.samplers.ancestral import Ancestral
from diffusion_lab.samplers.base import GivenNoise, Noise, OnStep, Sampler
from diffusion_lab.samplers.churn import Churn
from diffusion_lab.samplers.clipping import Clipping, DynamicClipping, NoClipping, StaticClipping
from diffusion_lab.samplers.ddim import DDIM
from diffusion_lab.samplers.dpm_solver import DPMSolver
from diffusion_lab.samplers.dpm_solver_sde import DPMSolverSDE
from diffusion_lab.samplers.euler import Euler
from diffusion_lab.samplers.heun import Heun
from diffusion_lab.samplers.langevin import AnnealedLangevin
from diffusion_lab.samplers.predictor_corrector import PredictorCorrector
from diffusion_lab.samplers.rk45 import RK45
from diffusion_lab.samplers.time_grids import (
    KarrasTimes,
    LeadingTimes,
    ListedTimes,
    LogSNRTimes,
    QuadraticTimes,
    SectionTimes,
    TimeGrid,
    TrailingTimes,
    UniformTimes,
)
from diffusion_lab.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "RK45",
    "Ancestral",
    "AnnealedLangevin",
    "Churn",
    "Clipping",
    "DPMSolver",
    "DPMSolverSDE",
    "DynamicClipping",
    "Euler",
    "GivenNoise",
    "Heun",
    "KarrasTimes",
    "LeadingTimes",
    "ListedTimes",
    "LogSNRTimes",
    "NoClipping",
    "Noise",
    "OnStep",
    "PredictorCorrector",
    "QuadraticTimes",
    "Sampler",
    "SectionTimes",
    "StaticClipping",
    "TimeGrid",
    "TrailingTimes",
    "UniPC",
    "UniformTimes",
]

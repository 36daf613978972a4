"""Samplers, which turn noise into images with a denoiser. Each sampling algorithm has its own module."""

from diffusion_lab.samplers.ancestral import Ancestral
from diffusion_lab.samplers.base import FixedStepSampler, GivenNoise, Noise, OnStep, Sampler, StepContext
from diffusion_lab.samplers.churn import Churn
from diffusion_lab.samplers.clipping import Clipping, DynamicClipping, NoClipping, StaticClipping
from diffusion_lab.samplers.ddim import DDIM
from diffusion_lab.samplers.ddim_times import DDIMTimes
from diffusion_lab.samplers.dpm_solver import DPMSolver
from diffusion_lab.samplers.dpm_solver_sde import DPMSolverSDE
from diffusion_lab.samplers.euler import Euler
from diffusion_lab.samplers.heun import Heun
from diffusion_lab.samplers.inversion import InvertibleSampler, obstacle_to_inversion
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
    "DDIMTimes",
    "DPMSolver",
    "DPMSolverSDE",
    "DynamicClipping",
    "Euler",
    "FixedStepSampler",
    "GivenNoise",
    "Heun",
    "InvertibleSampler",
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
    "StepContext",
    "TimeGrid",
    "TrailingTimes",
    "UniPC",
    "UniformTimes",
    "obstacle_to_inversion",
]

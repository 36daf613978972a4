"""LightningModules, optimizers, learning-rate schedules, loggers and the non-finite guard."""

from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.classifier_module import ClassifierModule
from diffusion_lab.training.diffusion_module import DiffusionModule
from diffusion_lab.training.loggers import MetricsFile, WandbRun
from diffusion_lab.training.lr_schedules import ConstantWithWarmup, CosineWithWarmup, LRSchedule
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard
from diffusion_lab.training.optimizers import Adam

__all__ = [
    "Adam",
    "ClassifierModule",
    "ConstantWithWarmup",
    "CosineWithWarmup",
    "DiffusionModule",
    "LRSchedule",
    "MetricsFile",
    "NonFiniteGuard",
    "TrainedModule",
    "WandbRun",
]

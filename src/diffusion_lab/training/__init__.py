"""LightningModules, optimizers, learning-rate schedules, loggers and the non-finite guard."""

from diffusion_lab.training.base_module import TrainedModule
from diffusion_lab.training.classifier_module import ClassifierModule
from diffusion_lab.training.diffusion_module import DiffusionModule
from diffusion_lab.training.loggers import MetricsFile, WandbRun
from diffusion_lab.training.lr_schedules import (
    ConstantWithWarmup,
    CosineWithWarmup,
    InverseSqrtWithWarmup,
    LinearWithWarmup,
    LRSchedule,
    TorchLRSchedule,
    WarmupStableDecay,
)
from diffusion_lab.training.muon import Muon
from diffusion_lab.training.nonfinite_guard import NonFiniteGuard
from diffusion_lab.training.optimizers import OptimizerFactory
from diffusion_lab.training.plain_batches import PlainBatch
from diffusion_lab.training.tensorboard_events import TensorBoardEvents

__all__ = [
    "ClassifierModule",
    "ConstantWithWarmup",
    "CosineWithWarmup",
    "DiffusionModule",
    "InverseSqrtWithWarmup",
    "LRSchedule",
    "LinearWithWarmup",
    "MetricsFile",
    "Muon",
    "NonFiniteGuard",
    "OptimizerFactory",
    "PlainBatch",
    "TensorBoardEvents",
    "TorchLRSchedule",
    "TrainedModule",
    "WandbRun",
    "WarmupStableDecay",
]

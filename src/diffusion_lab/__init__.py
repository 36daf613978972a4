"""Diffusion Lab: train, ablate, sample and evaluate denoising diffusion models of images.

The public names of all folders can be imported from here: `from diffusion_lab import DDIM, GaussianProcess`. The module
of a name is imported when the name is used for the first time, so that `import diffusion_lab` does not import torch.
"""
# ruff: noqa: F403

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.4.0"

_EXPORTS = {
    "process": (
        "X0", "ConstantSchedule", "CosineSchedule", "CustomSchedule", "EDMDenoiser", "EDMSchedule", "Epsilon",
        "FixedLarge", "FixedSmall", "FlowVelocity", "GaussianProcess", "Interpolated", "JSDSchedule",
        "LearnedDiagonal", "LearnedRange", "LinearScaledSchedule", "LinearSchedule", "LogNormalSigma",
        "LogitNormal", "LossSecondMoment", "NoiseSchedule", "PosteriorMean", "Preconditioning", "Prediction",
        "QuadraticSchedule", "RectifiedFlowSchedule", "Score", "SigmoidBetaSchedule", "SigmoidSchedule",
        "Stratified", "TableSchedule", "TimeDistribution", "Uniform", "V", "VESchedule", "VPSchedule",
        "Variance", "WarmupSchedule", "split_output", "weighted_sum", "widen",
    ),
    "networks": (
        "Blocks", "ClassifierNetwork", "Condition", "DiT", "FromDiffusers", "HalfUNet", "Labels", "Network",
        "PixelTransformer", "Sinusoids", "UNet", "missing_attributes",
    ),
    "objectives": (
        "P2", "Constant", "Denoising", "EDMWeighting", "Hybrid", "MinSNR", "Objective", "SoftMinSNR",
        "TruncatedSNR", "Variational", "Weighting", "bound_term", "prior_term", "unweighted",
    ),
    "guidance": (
        "Autoguidance", "ClassifierFreeGuidance", "ClassifierGuidance", "Guidable", "Guidance", "NoisyClassifier",
        "Strength",
    ),
    "samplers": (
        "DDIM", "RK45", "Ancestral", "AnnealedLangevin", "Churn", "Clipping", "DPMSolver", "DPMSolverSDE",
        "DynamicClipping", "Euler", "FixedStepSampler", "GivenNoise", "Heun", "KarrasTimes", "LeadingTimes",
        "ListedTimes", "LogSNRTimes", "NoClipping", "Noise", "OnStep", "PredictorCorrector", "QuadraticTimes",
        "Sampler", "SectionTimes", "StaticClipping", "StepContext", "TimeGrid", "TrailingTimes", "UniPC",
        "UniformTimes",
    ),
    "ema": ("EMA", "ConstantDecay", "Decay", "HalfLifeDecay", "PowerFunctionDecay", "RampedDecay"),
    "data": ("EDMAugmentation", "ImageBatch", "ImageDataModule", "ImageStore", "Images", "NearDuplicates", "Selection"),
    "features": (
        "CLIP", "FASHION_CNN_WEIGHTS", "DINOv2", "EfficientNet", "FashionCNN", "Features",
        "FeaturesUnavailableError", "Inception",
    ),
    "metrics": (
        "CMMD", "ClassAccuracy", "DensityCoverage", "FeatureSet", "FrechetDistance", "InceptionScore",
        "KernelDistance", "MeanOverImages", "Metric", "PrecisionRecall", "SpatialFrechetDistance",
    ),
    "training": (
        "ClassifierModule", "ConstantWithWarmup", "CosineWithWarmup", "DiffusionModule",
        "InverseSqrtWithWarmup", "LRSchedule", "LinearWithWarmup", "MetricsFile", "Muon", "NonFiniteGuard",
        "OptimizerFactory", "PlainBatch", "TorchLRSchedule", "TrainedModule", "WandbRun", "WarmupStableDecay",
    ),
    "generation": ("CascadeImages", "DownsampledImages", "LowResolutionImages", "SeededImages"),
    "evaluation": (
        "Evaluator", "FileReference", "FlowLikelihood", "ImageReference", "Number", "Reconstruction",
        "Reference", "VariationalBound",
    ),
    "callbacks": (
        "MeasureAccuracy", "MeasureDistance", "Progress", "RestoreOnDivergence", "SampleImages", "SaveAverages",
        "SaveLast", "StopOnSignal", "Throughput", "WholeCheckpoints",
    ),
    "denoiser": ("Denoiser", "DenoiserLike", "Estimate"),
    "latents": ("Latents", "Pixels", "Space"),
    "low_resolution": ("LowResolution",),
    "pixels": ("from_uint8", "to_uint8"),
    "randomness": ("Draws", "ImageNoise"),
    "runs": ("load_module",),
    "errors": ("UserError",),
}  # fmt: skip
"""Module -> public names."""

_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [*_MODULES, "__version__"]

if TYPE_CHECKING:
    from diffusion_lab.callbacks import *
    from diffusion_lab.data import *
    from diffusion_lab.denoiser import Denoiser as Denoiser
    from diffusion_lab.denoiser import DenoiserLike as DenoiserLike
    from diffusion_lab.denoiser import Estimate as Estimate
    from diffusion_lab.ema import *
    from diffusion_lab.errors import UserError as UserError
    from diffusion_lab.evaluation import *
    from diffusion_lab.features import *
    from diffusion_lab.generation import *
    from diffusion_lab.guidance import *
    from diffusion_lab.latents import Latents as Latents
    from diffusion_lab.latents import Pixels as Pixels
    from diffusion_lab.latents import Space as Space
    from diffusion_lab.low_resolution import LowResolution as LowResolution
    from diffusion_lab.metrics import *
    from diffusion_lab.networks import *
    from diffusion_lab.objectives import *
    from diffusion_lab.pixels import from_uint8 as from_uint8
    from diffusion_lab.pixels import to_uint8 as to_uint8
    from diffusion_lab.process import *
    from diffusion_lab.randomness import Draws as Draws
    from diffusion_lab.randomness import ImageNoise as ImageNoise
    from diffusion_lab.runs import load_module as load_module
    from diffusion_lab.samplers import *
    from diffusion_lab.training import *
else:

    def __getattr__(name: str) -> Any:
        """Import the module `name`, or the module that defines the public name `name`."""
        if name in _EXPORTS:
            return import_module(f"diffusion_lab.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module 'diffusion_lab' has no attribute '{name}'")
        globals()[name] = getattr(import_module(f"diffusion_lab.{_MODULES[name]}"), name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *__all__})

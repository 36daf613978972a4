"""Metrics of generated images, such as the FID, and of denoisers, such as bits per dimension.

The name of a metric value states how the value was computed, for example fid_inception_50k_train.
"""

from diffusion_lab.metrics.class_accuracy import ClassAccuracy
from diffusion_lab.metrics.cmmd import CMMD
from diffusion_lab.metrics.density_coverage import DensityCoverage
from diffusion_lab.metrics.edit_metric import EditMetric
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.frechet import FrechetDistance, SpatialFrechetDistance
from diffusion_lab.metrics.image_distances import PSNR, RMSE, SSIM, Consistency, Diversity
from diffusion_lab.metrics.inception_score import InceptionScore
from diffusion_lab.metrics.kid import KernelDistance
from diffusion_lab.metrics.mean_over_images import MeanOverImages
from diffusion_lab.metrics.memorization import Memorization
from diffusion_lab.metrics.metric import Metric
from diffusion_lab.metrics.perceptual_distance import LPIPS, FeatureDistance
from diffusion_lab.metrics.precision_recall import PrecisionRecall
from diffusion_lab.metrics.smoothness import Smoothness

__all__ = [
    "CMMD",
    "LPIPS",
    "PSNR",
    "RMSE",
    "SSIM",
    "ClassAccuracy",
    "Consistency",
    "DensityCoverage",
    "Diversity",
    "EditMetric",
    "FeatureDistance",
    "FeatureSet",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "MeanOverImages",
    "Memorization",
    "Metric",
    "PrecisionRecall",
    "Smoothness",
    "SpatialFrechetDistance",
]

"""Guidance: denoisers that wrap another denoiser. Imports torch only."""

from diffusion_lab.guidance.classifier import ClassifierGuidance
from diffusion_lab.guidance.classifier_free import Autoguidance, ClassifierFreeGuidance
from diffusion_lab.guidance.guidance import Guidance
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.guidance.strength import Guidable, Strength

__all__ = [
    "Autoguidance",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Guidable",
    "Guidance",
    "NoisyClassifier",
    "Strength",
]

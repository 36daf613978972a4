"""Guidance: denoisers that wrap another denoiser. Imports torch only."""

from diffusion_lab.guidance.classifier import ClassifierGuidance
from diffusion_lab.guidance.classifier_free import Autoguidance, ClassifierFreeGuidance
from diffusion_lab.guidance.guidance import Guidance
from diffusion_lab.guidance.noisy_classifier import NoisyClassifier
from diffusion_lab.guidance.strength import Strength

__all__ = ["Autoguidance", "ClassifierFreeGuidance", "ClassifierGuidance", "Guidance", "NoisyClassifier", "Strength"]

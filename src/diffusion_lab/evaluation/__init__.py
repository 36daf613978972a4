"""Evaluation of trained networks: metric values, each with the settings with which it was measured."""

from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.evaluation.likelihood import FlowLikelihood, VariationalBound
from diffusion_lab.evaluation.number import Number
from diffusion_lab.evaluation.reconstruction import Reconstruction
from diffusion_lab.evaluation.reference import FileReference, ImageReference, Reference
from diffusion_lab.evaluation.training_reference import TrainingReference

__all__ = [
    "Evaluator",
    "FileReference",
    "FlowLikelihood",
    "ImageReference",
    "Number",
    "Reconstruction",
    "Reference",
    "TrainingReference",
    "VariationalBound",
]

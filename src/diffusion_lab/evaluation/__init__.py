"""Image sets -> numbers with their protocol."""

from diffusion_lab.evaluation.evaluator import Evaluation, Number
from diffusion_lab.evaluation.likelihood import FlowLikelihood, VariationalBound
from diffusion_lab.evaluation.reconstruction import Reconstruction
from diffusion_lab.evaluation.reference import FileReference, ImageReference, Reference

__all__ = [
    "Evaluation",
    "FileReference",
    "FlowLikelihood",
    "ImageReference",
    "Number",
    "Reconstruction",
    "Reference",
    "VariationalBound",
]

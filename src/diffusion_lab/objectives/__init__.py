"""Training objectives: network output -> loss per image."""

from diffusion_lab.objectives.denoising import Denoising, Objective
from diffusion_lab.objectives.variational import Hybrid, Variational, bound_term, prior_term
from diffusion_lab.objectives.weightings import (
    P2,
    Constant,
    EDMWeighting,
    MinSNR,
    SoftMinSNR,
    TruncatedSNR,
    Weighting,
    unweighted,
)

__all__ = [
    "P2",
    "Constant",
    "Denoising",
    "EDMWeighting",
    "Hybrid",
    "MinSNR",
    "Objective",
    "SoftMinSNR",
    "TruncatedSNR",
    "Variational",
    "Weighting",
    "bound_term",
    "prior_term",
    "unweighted",
]

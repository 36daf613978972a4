"""Training objectives: network output -> loss per image."""

from diffusion_lab.objectives.denoising import Denoising, Objective

__all__ = ["Denoising", "Objective"]

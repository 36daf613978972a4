"""Diffusion Lab: train, ablate, sample and evaluate denoising diffusion models of images."""

__version__ = "0.4.0"

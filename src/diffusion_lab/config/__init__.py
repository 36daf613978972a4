"""Composition and validation of Hydra configs.  Importing this package registers the resolvers of conf/."""

from diffusion_lab.config import resolvers

__all__ = ["resolvers"]

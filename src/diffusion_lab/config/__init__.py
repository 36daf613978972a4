"""Hydra configs: composing, checking, resolvers and overrides. Importing it registers the resolvers of conf/."""

from diffusion_lab.config import resolvers

__all__ = ["resolvers"]

"""Ranks and collectives, launchers, Slurm jobs, and signals. Only `collectives` imports torch."""

from diffusion_lab.distributed.launch import cluster_environment

__all__ = ["cluster_environment"]

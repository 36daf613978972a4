"""Distributed training: collectives, launchers, Slurm jobs, and signals.

Of the modules, only `collectives` imports torch.
"""

from diffusion_lab.distributed.launch import cluster_environment

__all__ = ["cluster_environment"]

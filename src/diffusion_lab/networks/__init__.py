"""Networks: (x_t, time, condition) -> output. Imports torch and nothing else."""

from diffusion_lab.networks.condition import Condition, Labels
from diffusion_lab.networks.unet import UNet

__all__ = ["Condition", "Labels", "UNet"]

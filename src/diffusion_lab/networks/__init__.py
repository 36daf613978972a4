"""Networks: (x_t, time, condition) -> output. This package imports no library other than torch."""

from diffusion_lab.networks.blocks import Blocks
from diffusion_lab.networks.condition import Condition, Labels
from diffusion_lab.networks.dit import DiT, DiTVariant
from diffusion_lab.networks.embeddings import Sinusoids
from diffusion_lab.networks.from_diffusers import FromDiffusers
from diffusion_lab.networks.half_unet import HalfUNet
from diffusion_lab.networks.network import (
    ClassifierNetwork,
    Network,
    missing_attributes,
    require_network,
    require_output,
)
from diffusion_lab.networks.pixel_transformer import PixelTransformer
from diffusion_lab.networks.unet import UNet

__all__ = [
    "Blocks",
    "ClassifierNetwork",
    "Condition",
    "DiT",
    "DiTVariant",
    "FromDiffusers",
    "HalfUNet",
    "Labels",
    "Network",
    "PixelTransformer",
    "Sinusoids",
    "UNet",
    "missing_attributes",
    "require_network",
    "require_output",
]

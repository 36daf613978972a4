"""Feature networks: the frozen networks whose outputs metrics compare."""

from diffusion_lab.features.efficient_net import EfficientNet
from diffusion_lab.features.fashion_cnn import FASHION_CNN_WEIGHTS, FashionCNN
from diffusion_lab.features.features import Features, FeaturesUnavailableError
from diffusion_lab.features.inception import Inception
from diffusion_lab.features.raw_pixels import RawPixels
from diffusion_lab.features.vision_transformers import CLIP, DINOv2

__all__ = [
    "CLIP",
    "FASHION_CNN_WEIGHTS",
    "DINOv2",
    "EfficientNet",
    "FashionCNN",
    "Features",
    "FeaturesUnavailableError",
    "Inception",
    "RawPixels",
]

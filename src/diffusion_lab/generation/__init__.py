"""Seeds -> image sets, the same on any number of ranks."""

from diffusion_lab.generation.cascade import DrawnImages
from diffusion_lab.generation.low_resolution_images import ShrunkImages, SmallImages
from diffusion_lab.generation.seeded_images import SampledImages

__all__ = ["DrawnImages", "SampledImages", "ShrunkImages", "SmallImages"]

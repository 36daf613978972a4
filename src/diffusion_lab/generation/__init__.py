"""Generation of image sets, from seeds or from source images. The images are identical for any number of ranks."""

from diffusion_lab.generation.cascade import CascadeImages
from diffusion_lab.generation.condition_images import ConditionImages, MaskedImages, PairedImages
from diffusion_lab.generation.edit_sources import EditSources
from diffusion_lab.generation.edited_images import EditedImages
from diffusion_lab.generation.low_resolution_images import DownsampledImages, LowResolutionImages
from diffusion_lab.generation.seeded_images import SeededImages

__all__ = [
    "CascadeImages",
    "ConditionImages",
    "DownsampledImages",
    "EditSources",
    "EditedImages",
    "LowResolutionImages",
    "MaskedImages",
    "PairedImages",
    "SeededImages",
]

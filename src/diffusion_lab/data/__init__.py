"""Image sets: a Hugging Face data set or a folder of images -> training batches."""

from diffusion_lab.data.augmentation import EDMAugmentation
from diffusion_lab.data.duplicates import NearDuplicates
from diffusion_lab.data.image_datamodule import ImageBatch, ImageDataModule
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.data.pairs import Pairs
from diffusion_lab.data.selection import Selection

__all__ = [
    "EDMAugmentation",
    "ImageBatch",
    "ImageDataModule",
    "ImageStore",
    "Images",
    "NearDuplicates",
    "Pairs",
    "Selection",
]

"""Image sets: any Hugging Face set or folder of images -> batches for a step."""

from diffusion_lab.data.augmentation import EDMAugmentation
from diffusion_lab.data.duplicates import NearDuplicates
from diffusion_lab.data.image_datamodule import ImageBatch, ImageDataModule
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images

__all__ = ["EDMAugmentation", "ImageBatch", "ImageDataModule", "ImageStore", "Images", "NearDuplicates"]

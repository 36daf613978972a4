"""Condition images of the images of a data set, of the kind that a network was trained with."""

from diffusion_lab.data.image_datamodule import ImageDataModule
from diffusion_lab.data.images import Images
from diffusion_lab.generation.condition_images import ConditionImages, MaskedImages, PairedImages
from diffusion_lab.generation.low_resolution_images import DownsampledImages
from diffusion_lab.low_resolution import LowResolution
from diffusion_lab.masking import Masking


def conditions_of_images(
    images: Images,
    split: str,
    *,
    low_resolution: LowResolution | None = None,
    masking: Masking | None = None,
    noise: float = 0.0,
) -> ConditionImages | None:
    """Return the condition images of `images`; None for a network that is not conditioned on images.

    images: images of a split, with their condition images for an image-to-image network.  split: name of the split.
    low_resolution, masking: settings of the training.  noise: noise level of low-resolution images.
    """
    if low_resolution is not None:
        return DownsampledImages(images, split, low_resolution, noise)
    if masking is not None:
        return MaskedImages(images, split, masking)
    return None if images.condition is None else PairedImages(images, split)


def training_condition_images(datamodule: ImageDataModule) -> ConditionImages | None:
    """Return the condition images of the training images; None for a network that is not conditioned on images."""
    return conditions_of_images(
        datamodule.train_images, "train", low_resolution=datamodule.low_resolution, masking=datamodule.masking
    )

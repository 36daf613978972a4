"""Check of the training images before the run folder exists: their shape, and their classes."""

from typing import TYPE_CHECKING

import numpy as np

from diffusion_lab.errors import UserError
from diffusion_lab.runs import class_names

if TYPE_CHECKING:
    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.training.classifier_module import ClassifierModule
    from diffusion_lab.training.diffusion_module import DiffusionModule


def load_class_names(datamodule: "ImageDataModule") -> tuple[str, ...]:
    """Return the names of the classes of the training images.  Raises UserError if the images cannot be loaded."""
    try:
        return tuple(datamodule.train_images.class_names)
    except (ValueError, OSError) as error:
        raise of_store(error, datamodule) from error


def load_classes(datamodule: "ImageDataModule", module: "DiffusionModule | ClassifierModule") -> tuple[int, ...]:
    """Load the training images, and return the numbers of their classes; () if these are all classes.

    Raises UserError if the images cannot be loaded, or if their shape or their labels do not fit the settings.
    """
    num_classes = module.num_classes
    try:
        label = datamodule.train_images.label
    except (ValueError, OSError) as error:
        raise of_store(error, datamodule) from error
    _require_shape(datamodule, module.image_shape)
    if num_classes and len(label) and int(label.max()) >= num_classes:
        raise UserError(f"data.num_classes must be above the largest label ({int(label.max())}), got {num_classes}.")
    return class_names.proper_subset(set(label.tolist()) if num_classes else (), num_classes)


def of_store(error: Exception, datamodule: "ImageDataModule") -> UserError:
    """Return the error of loading images as a UserError, which names data.store if its class is of another package."""
    is_of_this_package = type(datamodule.store).__module__.partition(".")[0] == "diffusion_lab"
    return UserError(str(error) if is_of_this_package else f"data.store: {error}")


def _require_shape(datamodule: "ImageDataModule", shape: tuple[int, int, int]) -> None:
    """Raise UserError unless the images that the store loads have the shape [C, H, W] of the settings."""
    images = datamodule.train_images
    given = tuple(images.gather(np.zeros(1, np.int64)).shape[1:])
    if given != shape:
        raise UserError(
            f"data.store: `load` of {type(datamodule.store).__name__} must return images with data.channels="
            f"{shape[0]} and data.resolution={shape[1]}, uint8 {[len(images), *shape]}, got images of the shape "
            f"{[len(images), *given]} for the split train."
        )

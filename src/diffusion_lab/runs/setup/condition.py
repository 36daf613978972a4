"""Setup of condition images: low-resolution images, images with holes, or paired images.

Torch is imported inside functions, so that invalid settings are rejected without its import time.
"""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import instantiate_node

if TYPE_CHECKING:
    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.data.image_store import ImageStore
    from diffusion_lab.data.images import Images
    from diffusion_lab.generation.condition_images import ConditionImages
    from diffusion_lab.training.diffusion_module import DiffusionModule

GROUPS = ("low_resolution", "masking")
"""Config groups whose choices, except for `none`, compute condition images from the images."""


def require_pixels(config: DictConfig) -> None:
    """Raise UserError for low-resolution images, which are pixels, in the config of a network for latents."""
    in_pixels = str((config.get("space") or {}).get("_target_", ".Pixels")).endswith(".Pixels")
    if not in_pixels and config.get("low_resolution") is not None:
        raise UserError(
            "`low_resolution` must be none for space=sd_latents (low-resolution images are pixels), got "
            f"{str(config.low_resolution._target_).rpartition('.')[2]}."
        )


def paired_setting(config: DictConfig) -> str | None:
    """Return the setting and value that select paired images in a config; None without paired images."""
    pairs = (config.get("data") or {}).get("pairs") or {}
    given = {name: pairs.get(name) for name in ("column", "path")}
    return next((f"data.condition_{name}={value}" for name, value in given.items() if value is not None), None)


def require_condition(module: "DiffusionModule", datamodule: "ImageDataModule") -> None:
    """Raise UserError unless the network accepts the augmentation values and the condition images of the data."""
    network, augmentation, low_resolution = module.network, datamodule.augmentation, datamodule.low_resolution
    wanted = sum(part.num_channels for part in (augmentation, low_resolution) if part is not None)
    if wanted and network.num_augmentation_channels != wanted:  # if the data provides no values, any number is accepted
        raise UserError(
            f"model.num_augmentation_channels must be {wanted} (the number of values that `augmentation` and "
            f"`low_resolution` pass to the network), got {network.num_augmentation_channels}."
        )
    channels = _condition_channels(module, datamodule)
    if network.condition_channels != channels:
        kinds = {"low_resolution": low_resolution, "masking": datamodule.masking}
        given = [f"the given {name}" for name, kind in kinds.items() if kind is not None]
        given += [datamodule.pairs.setting] if datamodule.pairs is not None else []
        raise UserError(
            f"model.condition_channels must be {channels} with {given[0] if given else 'no condition images'}, got "
            f"{network.condition_channels}."
        )
    if low_resolution is not None and low_resolution.resolution >= network.resolution:
        raise UserError(
            f"low_resolution.resolution must be below data.resolution={network.resolution}, got "
            f"{low_resolution.resolution}."
        )


def _condition_channels(module: "DiffusionModule", datamodule: "ImageDataModule") -> int:
    """Return the number of channels of the condition images of the data as the network receives them."""
    images = module.image_shape[0]
    given = datamodule.condition_channels(images)
    try:
        return module.space.condition_channels(given)
    except ValueError as error:  # color images for an autoencoder of gray images
        raise UserError(
            f"data.condition_channels must be {images} for an autoencoder of images with data.channels={images}, got "
            f"{given}."
        ) from error


def has_condition_images(trained: DictConfig) -> bool:
    """Return whether the network of a run is conditioned on images.  trained: config of the run."""
    return any(trained.get(group) is not None for group in GROUPS) or paired_setting(trained) is not None


def load_images(trained: DictConfig, store: "ImageStore", split: str) -> "Images":
    """Return the images of a split of the data set of a run, with their paired images if the run has them.

    Raises ValueError or FileNotFoundError if images are missing.
    """
    from diffusion_lab.data import image_store

    pairs = None if paired_setting(trained) is None else instantiate_node(trained.data.pairs, "data")
    return image_store.load_images(store, split) if pairs is None else pairs.load(store, split)


def condition_images(config: DictConfig, trained: DictConfig) -> "ConditionImages | None":
    """Return the condition images for the run `run`: those of images of its data set; None for other runs.

    The images are of the split test or, if it is missing, of held-out images or of the training images.
    Raises UserError if a label is given, and ValueError or FileNotFoundError if images are missing.
    """
    if not has_condition_images(trained):
        return None
    from diffusion_lab.generation.conditions_of_images import conditions_of_images

    store = instantiate_node(trained.data.store, "data")
    split = next(name for name in ("test", "held_out", "train") if name in ("train", *store.splits()))
    if config.label is not None:
        raise UserError(
            f"`label` must be null for a network that is conditioned on images (the labels are those of the images in "
            f"the split {split}), got {config.label}."
        )
    given = [group for group in GROUPS if trained.get(group) is not None]
    kinds = {group: instantiate_node(trained[group], group) for group in given}
    noise = 0.0 if config.cascade else config.low_resolution_noise
    return conditions_of_images(load_images(trained, store, split), split, noise=noise, **kinds)

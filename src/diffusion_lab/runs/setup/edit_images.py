"""The setting `images` of an edit: source images from a split of the run's data set or from files, with their masks.

Torch is imported inside functions, so that invalid settings are rejected without its import time.
"""

import io
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from diffusion_lab.errors import UserError
from diffusion_lab.files.image_folders import SPLITS
from diffusion_lab.files.regular import MAX_IMAGE_BYTES, open_regular
from diffusion_lab.paths import expanduser
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs.load import instantiate_node
from diffusion_lab.runs.setup.image_sets import FILES, ImageSet, find_one_set
from diffusion_lab.runs.setup.reference import set_name
from diffusion_lab.runs.setup.splits import require_split

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.data.decoding import Preparation
    from diffusion_lab.data.image_store import ImageStore
    from diffusion_lab.edits import FrameSequence, Task
    from diffusion_lab.generation.edit_sources import EditSources

logger = logging.getLogger(__name__)

NUM_IMAGES = 64
"""Default number of source images of a split."""

MAX_SIZES = 1000
"""Largest number of source images whose sizes are compared with that of a mask file."""

OF_SAMPLES = "images"
"""Name of the only split of a set of files, see `data.sample_source`, whose import is slow."""


def build_sources(config: DictConfig, trained: DictConfig, task: "Task | FrameSequence") -> "EditSources":
    """Return the source images that the settings `images` and `num_images` select, and their masks.

    trained: resolved config of the run.
    Raises UserError if there are no such images, or if an image or a mask cannot be read or does not fit.
    """
    from diffusion_lab.generation.edit_sources import EditSources
    from diffusion_lab.randomness import permutation

    store: ImageStore = instantiate_node(trained.data.store, "data")
    try:
        if _is_split(config.images):
            name = split = str(config.images)
            require_split(split, "images", store, FILES)
            images = store.load(split)
            order = permutation(seed=0, epoch=0, size=len(images))  # data sets may be sorted by class
            images = images.select(order[: _num_images(config, len(images), min(NUM_IMAGES, len(images)))])
        else:
            found, split = find_one_set(config.images), OF_SAMPLES
            store, name = _samples(found, store.preparation, config), set_name(_named_by(found))
            images = store.load(split)
            images = images.select(np.arange(_num_images(config, len(images), len(images))))
        masks = _masks(task, store, split, len(images))
    except (ValueError, OSError) as error:
        raise UserError(_with_edit_settings(str(error))) from error
    has_labels = split != OF_SAMPLES and trained.data.get("label_column", "label") is not None
    return EditSources(images, name, has_labels, masks)


def _is_split(value: Any) -> bool:
    """Return whether a value of `images` names a split; a name of SPLITS has precedence over a path."""
    text = str(value)
    if not text.isidentifier():
        return False
    return text in (*SPLITS, "held_out") or not expanduser(text).exists()


def _named_by(found: ImageSet) -> Path:
    """Return the path by which a set of images is named: an image file without extension, a folder or an archive."""
    if found.files is None:
        return found.folder
    return found.folder.with_suffix("") if found.files == (str(found.folder),) else found.folder.parent


def _num_images(config: DictConfig, size: int, default: int) -> int:
    if config.num_images is not None and config.num_images > size:
        raise UserError(
            f"num_images must be at most {size:,} (the number of images in images={terminal_text(str(config.images))}),"
            f" got {config.num_images}."
        )
    return default if config.num_images is None else int(config.num_images)


def _samples(found: ImageSet, preparation: "Preparation", config: DictConfig) -> "ImageStore":
    """Return the store of a set of files, which are prepared as the images of the run.

    preparation: preparation of the images of the run, whose settings the config node `preparation` may replace.
    """
    from diffusion_lab.data.image_store import ON_ERROR, ImageStore

    settings = config.preparation
    if settings.on_error not in ON_ERROR:
        raise UserError(f"preparation.on_error must be {' or '.join(ON_ERROR)}, got {settings.on_error}.")
    try:
        if settings.fit is not None:  # the filter of the run may not be accepted with another fit
            preparation = replace(preparation, fit=settings.fit, resample="bicubic")
        if settings.resample is not None:
            preparation = replace(preparation, resample=settings.resample)
    except ValueError as error:
        raise UserError(f"preparation: {error}") from error
    return ImageStore.of_source(found.source(), preparation, on_error=settings.on_error)


def _masks(task: "Task | FrameSequence", store: "ImageStore", split: str, size: int) -> "Tensor | None":
    """Return the masks of the first `size` images, see `EditSources`; None for tasks without masks from files."""
    from diffusion_lab.edits import MaskFile, TransparentPixels

    mask = getattr(task, "mask", None)
    if isinstance(mask, MaskFile):
        return _mask_from_file(expanduser(mask.path), store, split)
    is_file = split == OF_SAMPLES
    return _transparency(store, size) if isinstance(mask, TransparentPixels) and is_file else None


def _mask_from_file(path: Path, store: "ImageStore", split: str) -> "Tensor":
    """Return the mask in an image file, which is resized as the source images: uint8 [1, 1, H, W].

    Raises UserError if it cannot be read, or unless it has the size of all source images, or that of the run.
    """
    import torch

    from diffusion_lab.data.decoding import DamagedImageError, header_size

    shown, side = terminal_text(str(path)), store.preparation.resolution
    try:
        with open_regular(path, MAX_IMAGE_BYTES) as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"mask.path must be an image file, got {shown} ({error.strerror}).") from error
    size = header_size(io.BytesIO(content))
    sizes = set(map(tuple, store.original_sizes(split, MAX_SIZES).tolist()))
    if size not in (None, (side, side)) and (others := sizes - {size}):
        other = min(others)
        raise UserError(
            f"mask.path must be an image with the size of the source images, or with {side} x {side} pixels as the "
            f"images of the run, got {shown} with {size[0]} x {size[1]} pixels for a source image with {other[0]} x "
            f"{other[1]} pixels."
        )
    try:
        mask, is_transparency = store.preparation.mask(content)
    except DamagedImageError as error:
        raise UserError(f"mask.path must be an image file, got {shown}, which cannot be read ({error}).") from error
    if is_transparency:
        logger.info("%s has no white pixels, so that its transparent pixels are filled.", shown)
    return torch.from_numpy(mask.copy())[None]


def _transparency(store: "ImageStore", size: int) -> "Tensor | None":
    """Return the transparency of the first `size` image files, uint8 [N, 1, H, W]; None if all are opaque."""
    import torch

    from diffusion_lab.data.decoding import DamagedImageError
    from diffusion_lab.data.image_files import read_images

    masks: list[np.ndarray] = []
    with TemporaryDirectory() as work_folder:
        files = replace(store.source).open(OF_SAMPLES, Path(work_folder)).images
        for content in read_images(files, 0, len(files)):
            try:  # damaged files, which the store leaves out, have no mask
                if len(masks) < size and isinstance(content, bytes):
                    masks.append(store.preparation.transparency(content))
            except DamagedImageError:
                continue
    found = torch.from_numpy(np.stack(masks))
    return found if bool(found.any()) else None


def _with_edit_settings(message: str) -> str:
    """Return an error message of the data package with the names that the settings have in an edit."""
    return message.replace("data.fit", "preparation.fit")

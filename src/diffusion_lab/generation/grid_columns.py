"""Number of columns of an image grid in which each column shows one class."""

import torch

from diffusion_lab.generation.edited_images import EditedImages
from diffusion_lab.generation.frame_images import FrameImages
from diffusion_lab.generation.seeded_images import SeededImages

DEFAULT, MOST = 8, 20
"""Number of columns of a grid without classes, and largest number of classes that are shown in columns."""


def num_columns(images: SeededImages | EditedImages | FrameImages) -> int:
    """Return the smallest number of classes after which the classes of the images repeat, or a multiple up to 10.

    The number is 8 unless 2 to 20 classes are in turn.
    """
    seeds, source = range(2 * MOST), images.condition_images
    label = images.labels(seeds)
    label = source.labels(seeds) if label is None and source is not None else label
    if label is None:
        return DEFAULT
    period = next((k for k in range(1, MOST + 1) if torch.equal(label[k:], label[:-k])), 1)
    return period * max(1, 10 // period) if period > 1 else DEFAULT

"""Selection of the images that are used from a decoded set."""

from collections.abc import Sequence

import numpy as np

from diffusion_lab.data.images import Images
from diffusion_lab.randomness import permutation


class Selection:
    """A random selection of images that does not depend on the seed of the run.

    The arguments are applied in the order in which they are listed.

    num_held_out: number of images of the train split to set aside as the split "held_out".
    classes: names of the classes to keep; None keeps all.
    max_images: largest number of images of the train split to keep; None keeps all.
    """

    def __init__(
        self, num_held_out: int = 0, classes: Sequence[str] | None = None, max_images: int | None = None
    ) -> None:
        if num_held_out < 0:
            raise ValueError(f"num_held_out must be at least 0, got {num_held_out}.")
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images must be at least 1 or null, got {max_images}.")
        self.num_held_out, self.max_images = num_held_out, max_images
        self.classes = None if classes is None else tuple(classes)

    def source_split(self, split: str) -> str:
        """Return the split of the image set that contains `split`.

        Raises ValueError for "held_out" if no images are held out.
        """
        if split != "held_out":
            return split
        if not self.num_held_out:
            raise ValueError("data.num_held_out must be above 0 to load the split held_out, got 0.")
        return "train"

    def apply(self, images: Images, split: str) -> Images:
        """Return the selected images of a split.  images: all images of the split `source_split(split)`.

        Raises ValueError if num_held_out leaves no image to train on, or if the set lacks one of the classes.
        """
        if self.num_held_out and split in ("train", "held_out"):
            images = self._hold_out(images, split)
        if self.classes is not None:
            labels = self._labels(images.class_names)
            images = images.select(np.flatnonzero(np.isin(images.label.numpy(), labels)))
        if split == "train" and self.max_images is not None and self.max_images < len(images):
            order = permutation(seed=0, epoch=1, size=len(images))
            images = images.select(np.sort(order[: self.max_images]))
        return images

    def _hold_out(self, images: Images, split: str) -> Images:
        """Return the held-out images of the train split, or the remaining images for split="train"."""
        if self.num_held_out >= len(images):
            raise ValueError(
                f"data.num_held_out must be below the number of training images ({len(images)}), got "
                f"{self.num_held_out}."
            )
        order = permutation(seed=0, epoch=0, size=len(images))
        chosen = order[self.num_held_out :] if split == "train" else order[: self.num_held_out]
        return images.select(np.sort(chosen))

    def _labels(self, names: tuple[str, ...]) -> list[int]:
        """Return the labels of the classes to keep."""
        classes = self.classes or ()
        if not classes or any(name not in names for name in classes):
            accepted = f"among {', '.join(names)}" if names else "null (the image set has no class names)"
            raise ValueError(f"data.classes must be {accepted}, got {', '.join(classes) or 'an empty list'}.")
        return [names.index(name) for name in classes]

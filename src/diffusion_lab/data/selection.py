"""Selection of the images that are used from a decoded set."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import numpy as np

from diffusion_lab.data.images import Images
from diffusion_lab.randomness import permutation


class Selection:
    """A random selection of images that does not depend on the seed of the run.

    The arguments are applied in the order in which they are listed.

    num_held_out: number of images of the train split to set aside as the split "held_out".
    classes: names, or numbers, of the classes to keep; None keeps all.
    max_images: largest number of images of the train split to keep; None keeps all.
    """

    def __init__(
        self,
        num_held_out: int = 0,
        classes: Sequence[str | int] | str | int | None = None,
        max_images: int | None = None,
    ) -> None:
        if num_held_out < 0:
            raise ValueError(f"num_held_out must be at least 0, got {num_held_out}.")
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images must be at least 1 or null, got {max_images}.")
        self.num_held_out, self.max_images = num_held_out, max_images
        listed = [classes] if isinstance(classes, (str, int)) else classes
        self.classes = None if listed is None else tuple(str(name) for name in listed)

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
        for _, selected in self.steps(images, split):
            images = selected
        return images

    def steps(self, images: Images, split: str) -> Iterator[tuple[str, Images]]:
        """Yield the remaining images after each step of `apply`, with the reason for which images are left out."""
        if self.num_held_out and split in ("train", "held_out"):
            images = self._hold_out(images, split)
            yield ("held out by data.num_held_out" if split == "train" else "not held out"), images
        if self.classes is not None:
            labels = self._labels(images)
            images = images.select(np.flatnonzero(np.isin(images.label.numpy(), labels)))
            yield "other classes than data.classes", images
        if split == "train" and self.max_images is not None and self.max_images < len(images):
            order = permutation(seed=0, epoch=1, size=len(images))
            yield "above data.max_images", images.select(np.sort(order[: self.max_images]))

    def _hold_out(self, images: Images, split: str) -> Images:
        """Return the held-out images of the train split, or the remaining images for split="train"."""
        if self.num_held_out >= len(images):
            raise ValueError(
                f"data.num_held_out must be below the number of training images ({len(images)}), got "
                f"{self.num_held_out}; data.num_held_out=0 trains on all images."
            )
        order = permutation(seed=0, epoch=0, size=len(images))
        chosen = order[self.num_held_out :] if split == "train" else order[: self.num_held_out]
        return images.select(np.sort(chosen))

    def _labels(self, images: Images) -> list[int]:
        """Return the labels of the classes to keep."""
        names, found = images.class_names, set(images.label.tolist())
        accepted = range(len(names)) if names else sorted(found)
        labels = [self._label(name, names) for name in self.classes or ()]
        if not labels or any(label not in accepted for label in labels):
            shown = ", ".join(names) if names else f"{accepted[0]} to {accepted[-1]} (the classes have no names)"
            given = ", ".join(self.classes or ()) or "an empty list"
            close = [self._closest(name, names, accepted) for name in self.classes or ()]
            meant = [name for name in close if name is not None] or [str([*names, *accepted][0])]
            hint = "for example" if None in close or not close else "perhaps you mean"
            raise ValueError(
                f"data.classes must be among {shown}, got {given}; {hint} {_as_override('data.classes', meant)}; "
                "data.classes=null uses all classes."
            )
        return [label for label in labels if label is not None]

    def _closest(self, name: str, names: Sequence[str], accepted: Sequence[int]) -> str | None:
        """Return a given class if it is accepted, else the class with the closest name; None if no name is close."""
        if self._label(name, names) in accepted:
            return name
        by_lower_case = {other.casefold(): other for other in names}
        close = get_close_matches(name.casefold(), by_lower_case, n=1, cutoff=0.6)
        return by_lower_case[close[0]] if close else None

    @staticmethod
    def _label(name: str, names: Sequence[str]) -> int | None:
        """Return the label of the class with a name or, if no class has this name, a number; None if there is none."""
        if name in names:
            return names.index(name)
        return int(name) if name.isdecimal() else None


def _as_override(key: str, names: Sequence[str]) -> str:
    """Return a list as an override that can be copied to a shell, which requires quotes around special characters."""
    text = f"{key}=[{','.join(dict.fromkeys(names))}]"
    return text if re.fullmatch(r"[\w.=,-]+\[\w+(,\w+)*\]", text) else f"'{text}'"

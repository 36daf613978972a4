"""Sources of the images that a network is conditioned on, with one condition image for each seed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.fingerprints import describe
from diffusion_lab.masking import Masking, masked_condition
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8, to_uint8
from diffusion_lab.randomness import Purpose, permutation, stream


class ConditionImages(ABC):
    """A source of condition images, with one image for each seed.

    field: fingerprint field that contains `protocol`.
    stage: index of the network in its cascade.
    """

    field: str = "condition"
    stage: int = 0

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels of the condition image."""

    @abstractmethod
    def condition(self, seeds: range, label: Tensor | None, device: torch.device) -> Condition:
        """Return the condition of the network for the images of `seeds`.

        seeds: seeds of one full batch.  label: classes, int64 [B].
        """

    @abstractmethod
    def condition_of(
        self, x_0: Tensor, label: Tensor | None, paired: Tensor | None, indices: Sequence[int]
    ) -> Condition:
        """Return the condition of the network for images that were not generated, such as images of the data set.

        x_0: images, [B, C, H, W] in [-1, 1].  label: their classes, int64 [B].
        paired: their paired images, [B, C', H, W], or None if the data set has none.
        indices: indices of the images in the data set, which determine the random numbers of the condition.
        """

    @abstractmethod
    def pictures(self, seeds: range) -> Tensor:
        """Return the condition images to show: uint8 [B, C, h, w] with 1 or 3 channels.  seeds: as in `condition`."""

    @abstractmethod
    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        """Return the classes of the images, int64 [B], or None if the source has no classes."""

    @abstractmethod
    def require(self, num_classes: int) -> None:
        """Raise ValueError if the images do not fit a network that is conditioned on num_classes classes."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return the settings that determine the images, for fingerprints."""


@dataclass(frozen=True)
class ShuffledImages:
    """Images of a data set in a fixed random order, since data sets may be sorted by class; seed k has image k of it.

    images: images of a split.  split: name of the split.
    """

    images: Images
    split: str

    @cached_property
    def _order(self) -> np.ndarray:
        return permutation(seed=0, epoch=0, size=len(self.images))

    def index(self, seeds: Sequence[int]) -> np.ndarray:
        """Return the index of the image of each seed, int64 [B]; after the last image, the order begins again."""
        order: np.ndarray = self._order[np.array(seeds) % len(self.images)]
        return order

    def pixels(self, seeds: Sequence[int]) -> Tensor:
        """Return the image of each seed, uint8 [B, C, H, W]."""
        return self.images.gather(self.index(seeds))

    def labels(self, seeds: Sequence[int]) -> Tensor:
        """Return the class of the image of each seed, int64 [B]."""
        return self.images.label[self.index(seeds)]

    def require(self, num_classes: int) -> None:
        """Raise ValueError if an image has none of the num_classes classes of the network; 0 accepts all images."""
        label = self.images.label
        if num_classes and len(label) and not 0 <= int(label.min()) <= int(label.max()) < num_classes:
            raise ValueError(
                f"the labels of the {self.split} images must be in 0..{num_classes - 1} (the network's classes), got "
                f"{int(label.min())}..{int(label.max())}."
            )

    def protocol(self) -> dict[str, Any]:
        """Return the settings that determine the images, for fingerprints."""
        return {"from": f"images of {self.split}", "fingerprint": self.images.fingerprint}


class MaskedImages(ConditionImages):
    """Images of a data set with random holes, for an inpainting network. The hole of seed k depends only on k."""

    def __init__(self, images: Images, split: str, masking: Masking) -> None:
        """images, split: see `ShuffledImages`.  masking: distribution of the holes."""
        self.data, self.masking = ShuffledImages(images, split), masking

    @property
    def channels(self) -> int:
        return self.masking.condition_channels(self.data.images.channels)

    def condition(self, seeds: range, label: Tensor | None, device: torch.device) -> Condition:
        return self.condition_of(from_uint8(self.data.pixels(seeds).to(device)), label, None, seeds)

    def condition_of(
        self, x_0: Tensor, label: Tensor | None, paired: Tensor | None, indices: Sequence[int]
    ) -> Condition:
        numbers = [stream(k, Purpose.SAMPLED_CONDITION).random(self.masking.num_uniform) for k in indices]
        return masked_condition(label, x_0, self.masking.mask(torch.from_numpy(np.stack(numbers)), x_0))

    def pictures(self, seeds: range) -> Tensor:
        image = self.condition(seeds, None, torch.device("cpu")).image
        assert image is not None
        return to_uint8(image[:, :-1])

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        return self.data.labels(seeds)

    def require(self, num_classes: int) -> None:
        self.data.require(num_classes)

    def protocol(self) -> dict[str, Any]:
        return self.data.protocol() | {"masking": describe(self.masking)}


class PairedImages(ConditionImages):
    """Condition images that a data set has for its images, for an image-to-image network."""

    def __init__(self, images: Images, split: str) -> None:
        """images, split: see `ShuffledImages`.  Raises ValueError if the images have no condition images."""
        if images.condition is None:
            raise ValueError(f"the {split} images must have condition images, got images without them.")
        self.data, self.partners = ShuffledImages(images, split), images.condition

    @property
    def channels(self) -> int:
        return self.partners.channels

    def condition(self, seeds: range, label: Tensor | None, device: torch.device) -> Condition:
        return Condition(label, image=from_uint8(self.pictures(seeds).to(device)))

    def condition_of(
        self, x_0: Tensor, label: Tensor | None, paired: Tensor | None, indices: Sequence[int]
    ) -> Condition:
        if paired is None:
            raise ValueError("the images of the data set must have condition images for this network, got none.")
        return Condition(label, image=paired)

    def pictures(self, seeds: range) -> Tensor:
        return self.partners.gather(self.data.index(seeds))

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        return self.data.labels(seeds)

    def require(self, num_classes: int) -> None:
        self.data.require(num_classes)

    def protocol(self) -> dict[str, Any]:
        return self.data.protocol() | {"condition_fingerprint": self.partners.fingerprint}

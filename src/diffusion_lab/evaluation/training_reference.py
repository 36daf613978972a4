"""The images a network was trained on, with images that were held out of its training."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.duplicates import image_digests, same_bytes, same_bytes_between
from diffusion_lab.data.image_store import ImageStore, load_images
from diffusion_lab.data.images import Images
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.evaluation.reference import ImageReference
from diffusion_lab.features import Features
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric
from diffusion_lab.reporting.progress import Display

logger = logging.getLogger(__name__)

HELD_OUT = ("test", "held_out")
"""Splits that contain images a network was not trained on, by preference."""


@dataclass(frozen=True)
class TrainingReference:
    """Training images and held-out images, for metrics that find copies of training images.

    Exact copies of images, as `inspect_data` reports them, would distort distances between images: of training images
    with the same bytes, one is used, and so for held-out images; held-out images with the bytes of a training image are
    left out.
    """

    training: ImageReference
    held_out: ImageReference

    @classmethod
    def of(cls, store: ImageStore, training: Images | None = None) -> "TrainingReference":
        """Return the reference with the held-out images of a set: its test split, else the images that it sets aside.

        training: the training images; None loads them.
        Raises ValueError if there are no held-out images.
        """
        split, folder = held_out_split(store.splits()), store.cache.references
        training = load_images(store, "train") if training is None else training
        return cls(ImageReference(training, "train", folder), ImageReference(load_images(store, split), split, folder))

    def require(self, metric: Metric) -> None:
        """Raise ValueError if there are too few held-out images for a metric."""
        if (size := len(self.held_out.images)) < metric.min_held_out:
            raise ValueError(
                f"{self.held_out.split} must contain at least {metric.min_held_out} images for {metric.title}, got "
                f"{size}."
            )

    @property
    def name(self) -> str:
        return self.training.name

    def protocol(self) -> dict[str, Any]:
        """Return the values that identify both sets in fingerprints.  rows: number of images that are used."""
        parts = zip((self.training, self.held_out), self._used, strict=True)
        training, held_out = (part.protocol() | {"rows": len(used)} for part, used in parts)
        return training | {"held_out": held_out}

    def feature_sets(
        self, features: Features, needs_rows: Mapping[str, bool], display: Display
    ) -> dict[str, FeatureSet]:
        """Return the features of the training images that are used, with those of the held-out images.

        The arguments are those of `Reference.feature_sets`. Collective: call on all ranks.
        """
        needed = dict.fromkeys(needs_rows, True)
        training, held_out = (part.feature_sets(features, needed, display) for part in (self.training, self.held_out))
        self._note_left_out()
        used, used_held_out = (torch.from_numpy(used) for used in self._used)
        return {
            output: replace(
                training[output],
                rows=training[output].require_rows()[used],
                held_out=held_out[output].require_rows()[used_held_out],
            )
            for output in needs_rows
        }

    def num_to_extract(self, features: Features, needs_rows: Mapping[str, bool]) -> int:
        """Return the number of images whose features `feature_sets` extracts."""
        needed = dict.fromkeys(needs_rows, True)
        return sum(part.num_to_extract(features, needed) for part in (self.training, self.held_out))

    def numbers(self, rows: Sequence[int]) -> np.ndarray:
        """Return the number in the training set of the images with these rows in the feature sets, int64 [B]."""
        return np.asarray(self.training.stored_rows[self._used[0][list(rows)]])

    def pixels(self, numbers: np.ndarray) -> Tensor:
        """Return training images, uint8 [B, C, H, W].  numbers: see `numbers`."""
        return self.training.images.gather(numbers)

    @cached_property
    def _used(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the training images and of the held-out images that are used: int64 [M] and [H], ascending."""
        training, held_out = (_digests(part) for part in (self.training, self.held_out))
        known = [pair.second for pair in same_bytes_between(training, held_out)]
        return _distinct(training), np.setdiff1d(_distinct(held_out), known)

    def _note_left_out(self) -> None:
        """Log on rank 0 which images are not used."""
        if Ranks.current().rank:
            return
        for part, used in zip((self.training, self.held_out), self._used, strict=True):
            num_stored = len(part.stored_rows)
            if num_stored < len(part.images):
                logger.warning(
                    "%s of the %s images of %s are compared with samples; copies of other images are not found.",
                    f"{num_stored:,}", f"{len(part.images):,}", part.split,
                )  # fmt: skip
            if len(used) < num_stored:
                others = "others" if part is self.training else "others or of training images"
                logger.info(
                    "left out as exact copies of %s: %s of the %s images of %s.",
                    others, f"{num_stored - len(used):,}", f"{num_stored:,}", part.split,
                )  # fmt: skip


def held_out_split(splits: Sequence[str]) -> str:
    """Return the split with images that a network was not trained on.  Raises ValueError if there is none."""
    found = next((split for split in HELD_OUT if split in splits), None)
    if found is None:
        raise ValueError(
            "`metrics` must not contain memorization for a data set without held-out images, got the splits "
            f"{', '.join(dict.fromkeys(('train', *splits)))}; data.num_held_out=NUMBER holds out images of a new run."
        )
    return found


def _digests(reference: ImageReference) -> np.ndarray:
    """Return the digests of the images whose features are stored, uint64 [M]."""
    images = reference.images.select(reference.stored_rows)
    return np.concatenate([image_digests(pixels) for pixels in images.batches(256)])


def _distinct(digests: np.ndarray) -> np.ndarray:
    """Return the index of one image of each group of images with equal digests, int64 [M]."""
    copies = [k for group in same_bytes(digests) for k in group[1:]]
    return np.setdiff1d(np.arange(len(digests)), copies)

"""Base class of metrics that are computed from the features of generated images, and the names of metric values."""

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from diffusion_lab.contracts import DataclassInterface
from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.features import Features
from diffusion_lab.metrics.feature_set import FeatureSet, require_feature_sets

logger = logging.getLogger(__name__)

WITH_INCEPTION = {"fd": "fid", "sfd": "sfid", "kd": "kid", "cs": "is"}
"""First part of a metric name -> its name for Inception features, the only features for which the papers define it."""


@dataclass(frozen=True)
class NearPair:
    """A sample and its nearest training image.

    sample, training: index of the sample, and row of the training image in the reference set.
    distance: distance between their features.  threshold: distance below which a sample counts as a copy.
    """

    sample: int
    training: int
    distance: float
    threshold: float


@dataclass(frozen=True)
class Metric(DataclassInterface):
    """Metric of generated images (samples), computed from their features, such as the FID.

    Most metrics compare the features of the samples with the features of a reference set of images.

    features: feature network.  output: name of the output of the feature network that the metric uses.
    choice: name of the metric's file in conf/metrics; "" for a metric without a file, whose class name messages show.
    meaning: what the values are, in a few words.  meanings: first part of a metric name -> what this value is, for a
        metric with several values.
    higher_is_better: whether a higher value means better samples.
    directions: first part of a metric name -> whether a higher value is better, None for a value without a direction;
        for a metric whose values differ in this.
    needs_reference: whether the metric compares the samples with a reference set.
    needs_held_out: whether the metric compares the samples with all training images and with held-out images, whatever
        the reference set is.
    needs_rows: whether the metric needs the features of single images, not only their mean and covariance.
    Raises ValueError if the features do not have this output.
    """

    features: Features

    choice: ClassVar[str] = ""
    output: ClassVar[str] = "pooled"
    meaning: ClassVar[str] = ""
    meanings: ClassVar[Mapping[str, str]] = {}
    higher_is_better: ClassVar[bool] = False
    directions: ClassVar[Mapping[str, bool | None]] = {}
    needs_reference: ClassVar[bool] = True
    needs_held_out: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.output not in self.features.outputs:
            raise ValueError(
                f"`features` must have the output {self.output!r} for {self._chosen()}, got {self.features.name} "
                f"with the outputs {', '.join(self.features.outputs)}."
            )

    @property
    def title(self) -> str:
        """Name of the metric in messages: its choice and its features, such as "fid (features=inception)"."""
        return f"{self._chosen()} (features={self.features.name})"

    def _chosen(self) -> str:
        return self.choice or type(self).__name__

    @property
    def min_images(self) -> int:
        """Smallest number of images in a set for which the metric is defined."""
        return 2

    @property
    def min_held_out(self) -> int:
        """Smallest number of held-out images for which the metric is defined."""
        return 0

    def caution(self, num_images: int) -> str | None:
        """Return what is wrong with a value for so few images, after "METRIC for NUMBER images ", or None.

        num_images: size of the smaller of the two sets.

        Sets with fewer than min_images images are refused instead.
        """
        return None

    def caution_for_sizes(self, num_samples: int, num_reference: int) -> str | None:
        """Return what is wrong with a value for sets of these sizes, as `caution` does."""
        return self.caution(min(num_samples, num_reference))

    def note_caution(self, num_samples: int, num_reference: int | None = None) -> None:
        """Log once, on rank 0, if sets are too small or too unequal.  num_reference: None if there is no reference."""
        num_reference = num_samples if num_reference is None else num_reference
        reason = self.caution_for_sizes(num_samples, num_reference)
        if reason is not None and Ranks.current().rank == 0:
            _log_once(f"{self.title} for {min(num_samples, num_reference):,} images {reason}.")

    def check_sets(self, *sets: FeatureSet) -> None:
        """Raise ValueError unless the arguments of `measure` are sets of features; log once if they are too small."""
        require_feature_sets(*sets)
        self.note_caution(*(given.count for given in sets))

    def for_sizes(self, num_samples: int, num_reference: int) -> "Metric":
        """Return the metric with the settings that `measure` uses for sets of these sizes, which are recorded."""
        return self

    def require_classes(self, num_classes: int) -> None:
        """Raise ValueError if the metric cannot be computed for samples of this number of classes.

        num_classes: number of classes; 0 for unconditional samples.
        """

    @abstractmethod
    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """Return the metric values by the first part of their names, for example "precision" and "recall".

        samples: features of the generated images.
        reference: features of the reference set; ignored if the metric needs no reference and no held-out images.
        Raises ValueError if a set is too small.
        """

    def measure_with_pairs(
        self, samples: FeatureSet, reference: FeatureSet
    ) -> tuple[dict[str, float], tuple[NearPair, ...]]:
        """Return the result of `measure`, and pairs of images to show, nearest first; most metrics have none."""
        return self.measure(samples, reference), ()

    def direction(self, kind: str) -> bool | None:
        """Return whether a higher value is better; None for a value without a direction.  kind: see `measure`."""
        return None if kind.endswith("_std") else self.directions.get(kind, self.higher_is_better)


def full_name(kind: str, features: str, num_samples: int, reference: str | None) -> str:
    """Return the full name of a metric value, which states how the value was computed.

    The name is KIND_FEATURES_SAMPLES_REFERENCE, for example kid_inception_50k_train.
    kind: first part of the name, from `Metric.measure`; fd becomes fid for Inception features, see `WITH_INCEPTION`.
    features: name of the features.  reference: name of the reference set; None omits REFERENCE.
    """
    first, _, rest = kind.partition("_")
    kind = "_".join(filter(None, [WITH_INCEPTION.get(first, first), rest])) if features == "inception" else kind
    return "_".join([kind, features, abbreviate_count(num_samples), *([reference] if reference else [])])


def abbreviate_count(count: int) -> str:
    """Return a number of images as text for a name, with k for complete thousands: 50000 -> 50k, 1234 -> 1234."""
    thousands, rest = divmod(count, 1000)
    return str(count) if rest else f"{thousands}k"


def caution_for_neighbors(num_images: int, num_neighbors: int) -> str | None:
    """Return `Metric.caution` for a metric of num_neighbors nearest neighbors."""
    if num_images >= 20 * num_neighbors:
        return None
    return f"means little: with {num_neighbors} neighbors of {num_images} images, a ball covers a large part of the set"


def caution_for_unequal_sizes(num_samples: int, num_reference: int) -> str | None:
    """Return `Metric.caution_for_sizes` for a metric whose authors compare sets of equal sizes."""
    if max(num_samples, num_reference) <= 2 * min(num_samples, num_reference):
        return None
    return (
        f"depends on the sizes of both sets, {num_samples:,} samples and {num_reference:,} reference images; the "
        "authors use equal sizes, so compare it only with values for the same two sizes"
    )


@cache
def _log_once(message: str) -> None:
    logger.warning("%s", message)

"""What all metrics of sets of images share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from diffusion_lab.features import Features
from diffusion_lab.metrics.feature_set import FeatureSet


@dataclass(frozen=True)
class Metric(ABC):
    """Numbers about a set of samples by their features, most of them beside a reference set.

    Each metric is a frozen dataclass: the features through which it sees images, and its own settings.
    output: which output of the features it sees, see `Features`.  needs_reference: whether it compares at all.
    needs_rows: whether it asks for the features of single images, not for their mean and covariance alone.
    Raises ValueError where the features lack that output.
    """

    features: Features

    output: ClassVar[str] = "pooled"
    needs_reference: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.output not in self.features.outputs:
            raise ValueError(
                f"features must have the output {self.output!r} for {type(self).__name__}, got {self.features.name}, "
                f"which has {', '.join(self.features.outputs)}."
            )

    @property
    def min_images(self) -> int:
        """The fewest images of a set with which the metric means something."""
        return 2

    def require_classes(self, num_classes: int) -> None:  # noqa: B027 (most see no classes)
        """Raises ValueError where the metric needs other classes than the num_classes that samples are drawn for."""

    @abstractmethod
    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """The numbers by the first part of their names, such as "kid", or "precision" and "recall".

        Metrics without a reference ignore it.  Raises ValueError where a set is too small.
        """


def full_name(kind: str, features: str, num_samples: int, reference: str | None) -> str:
    """A number's name, with its protocol: kid_inception_50k_train. Only over Inception's features is it called FID.

    kind: as `Metric.measure` calls it.  reference: the split, or None for a number without one.
    """
    kind = {"fd": "fid", "sfd": "sfid"}.get(kind, kind) if features == "inception" else kind
    return "_".join([kind, features, in_short(num_samples), *([reference] if reference else [])])


def in_short(number: int) -> str:
    """A number of images as names have it: 50000 -> 50k, 1234 -> 1234."""
    thousands, rest = divmod(number, 1000)
    return str(number) if rest else f"{thousands}k"

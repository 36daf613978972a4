"""Accuracy of a classifier on class-conditional samples."""

from dataclasses import dataclass
from typing import ClassVar

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric


@dataclass(frozen=True)
class ClassAccuracy(Metric):
    """Fraction of samples that a classifier assigns to the class on which their generation was conditioned.

    The classifier is the feature network, not a classifier that guided the samples. The feature network must have the
    same classes as the samples.
    """

    choice: ClassVar[str] = "class_accuracy"
    meaning: ClassVar[str] = "fraction of the samples that a classifier assigns to their class"
    higher_is_better: ClassVar[bool] = True

    output: ClassVar[str] = "logits"
    needs_reference: ClassVar[bool] = False

    @property
    def min_images(self) -> int:
        return 1

    def caution(self, num_images: int) -> str | None:
        return None if num_images >= 100 else "has an error of several percent"

    def require_classes(self, num_classes: int) -> None:
        if not num_classes:
            raise ValueError(
                "class_accuracy must be measured on samples of a class-conditional network (conditioning=label), got "
                "an unconditional network."
            )
        if self.features.num_classes != num_classes:
            raise ValueError(
                f"`features` must be a classifier with {num_classes} classes (as the samples) for class_accuracy, "
                f"got {self.features.name} with {self.features.num_classes or 'no'} classes."
            )

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        self.check_sets(samples)
        if samples.label is None:
            raise ValueError("`samples` must have the classes of the images as its label, got None.")
        predicted = samples.require_rows().argmax(dim=1)
        return {"class_accuracy": float((predicted == samples.label).double().mean())}

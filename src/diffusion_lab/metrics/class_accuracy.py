"""How often a classifier finds the class that an image was drawn for."""

from dataclasses import dataclass
from typing import ClassVar

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric


@dataclass(frozen=True)
class ClassAccuracy(Metric):
    """The share of samples whose largest logit is that of the label asked for.

    The classifier is the network of features: it never guided the samples, and must know the same classes.
    """

    output: ClassVar[str] = "logits"
    needs_reference: ClassVar[bool] = False

    @property
    def min_images(self) -> int:
        return 1

    def require_classes(self, num_classes: int) -> None:
        if not num_classes:
            raise ValueError("conditioning must be label for class_accuracy, got a network that was told no classes.")
        if self.features.num_classes != num_classes:
            raise ValueError(
                f"features must be of a classifier of the {num_classes} classes that are asked for, got "
                f"{self.features.name}."
            )

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        assert samples.label is not None  # required before
        found = samples.require_rows().argmax(dim=1)
        return {"class_accuracy": float((found == samples.label).double().mean())}

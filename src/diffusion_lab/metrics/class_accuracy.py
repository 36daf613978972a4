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

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        logits, label = samples.require_rows(), samples.label
        if label is None:
            raise ValueError("conditioning must be label for class_accuracy, got a network that was told no classes.")
        if int(label.max()) >= logits.shape[1]:
            raise ValueError(
                f"features must know the classes that were asked for, up to {int(label.max())}, got {logits.shape[1]} "
                f"of {self.features.name}."
            )
        return {"class_accuracy": float((logits.argmax(dim=1) == label).double().mean())}

from dataclasses import replace

import pytest
import torch

from diffusion_lab.features import FashionCNN
from diffusion_lab.metrics.class_accuracy import ClassAccuracy
from diffusion_lab.metrics.feature_set import FeatureSet

LOGITS = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 1.0], [5.0, 4.0, 3.0]])


def measured(label: torch.Tensor | None) -> dict[str, float]:
    samples = replace(FeatureSet.of(LOGITS), label=label)
    return ClassAccuracy(FashionCNN(weights=None)).measure(samples, samples)


def test_accuracy_is_the_fraction_of_samples_with_the_predicted_class() -> None:
    assert measured(torch.tensor([1, 0, 2, 0])) == {"class_accuracy": 1.0}
    assert measured(torch.tensor([1, 0, 1, 1])) == {"class_accuracy": 0.5}


@pytest.mark.parametrize(
    ("num_classes", "message"),
    [
        (0, "class_accuracy must be .* class-conditional network .conditioning=label., got an unconditional"),
        (7, "`features` must be a classifier with 7 classes .* got fashion_cnn with 10 classes"),
    ],
)
def test_samples_without_the_classes_of_the_classifier_are_refused(num_classes: int, message: str) -> None:
    metric = ClassAccuracy(FashionCNN(weights=None))
    metric.require_classes(10)
    with pytest.raises(ValueError, match=message):
        metric.require_classes(num_classes)

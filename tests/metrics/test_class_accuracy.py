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


def test_accuracy_is_the_share_of_samples_in_which_the_asked_class_is_found() -> None:
    assert measured(torch.tensor([1, 0, 2, 0])) == {"class_accuracy": 1.0}
    assert measured(torch.tensor([1, 0, 1, 1])) == {"class_accuracy": 0.5}


def test_a_network_without_classes_has_no_such_accuracy() -> None:
    with pytest.raises(ValueError, match="conditioning must be label for class_accuracy, got a network"):
        measured(None)


def test_classes_that_the_features_do_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features must know the classes .* up to 7, got 3 of fashion_cnn"):
        measured(torch.tensor([1, 0, 7, 1]))

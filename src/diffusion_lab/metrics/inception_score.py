"""Inception Score: confidence of a classifier on single images and diversity of its predictions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_lab.contracts import added
from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric

MIN_IMAGES_PER_SPLIT = 2
"""Images per split below which every score is 1."""

MEANINGFUL_IMAGES_PER_SPLIT = 100
"""Images per split below which the score depends on the number of images more than on the images."""


@dataclass(frozen=True)
class InceptionScore(Metric):
    """Classifier score: with Inception features, the Inception Score (Salimans et al. 2016); by torch-fidelity.

    The score is exp of the mean KL divergence between the class probabilities that are predicted for an image and the
    mean class probabilities of all images. The samples are shuffled with a fixed seed and split into num_splits parts;
    the results are the mean and the standard deviation of the scores of the parts. If split_size is given, the parts
    are consecutive samples in the order of generation instead, and the names of the results contain "ordered"
    (Dhariwal & Nichol 2021, code of the evaluator, which uses parts of 5000).
    num_splits: number of parts; not used if split_size is given.
    split_size: number of images of each part. A last part with fewer images counts as much as the others.
    Raises ValueError unless num_splits and split_size are at least 1; `measure` raises it for fewer samples than parts.
    """

    choice: ClassVar[str] = "is"
    meaning: ClassVar[str] = "confidence and diversity of the predicted classes"
    higher_is_better: ClassVar[bool] = True
    meanings: ClassVar[Mapping[str, str]] = {
        "cs_ordered": "confidence and diversity of the predicted classes, in parts of consecutive samples",
        "cs_ordered_std": "confidence and diversity of the predicted classes: standard deviation over the parts",
    }

    num_splits: int = 10
    split_size: int | None = added(None)

    output: ClassVar[str] = "logits"
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_splits < 1:
            raise ValueError(f"num_splits must be at least 1, got {self.num_splits}.")
        given: Any = self.split_size
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ValueError(f"split_size must be a whole number of at least 1, got {given}.")

    @property
    def min_images(self) -> int:
        return MIN_IMAGES_PER_SPLIT * (self.num_splits if self.split_size is None else 1)

    def for_sizes(self, num_samples: int, num_reference: int) -> "InceptionScore":
        """Return the metric with the number of parts that `split_size` gives."""
        return self if self.split_size is None else replace(self, num_splits=math.ceil(num_samples / self.split_size))

    def caution(self, num_images: int) -> str | None:
        if self.split_size is not None:
            return self._caution_for_last_part(num_images, self.split_size)
        per_split = num_images // self.num_splits
        if per_split >= MEANINGFUL_IMAGES_PER_SPLIT:
            return None
        return (
            f"means little: each of the {self.num_splits} splits has {per_split} images, and the score of a split is "
            "at most the number of its images; papers use 5,000 per split"
        )

    def _caution_for_last_part(self, num_images: int, split_size: int) -> str | None:
        last = num_images % split_size or split_size
        if last >= max(MEANINGFUL_IMAGES_PER_SPLIT, split_size / 2):
            return None
        return (
            f"means little: the last split has {last:,} images, and the score of a split, which counts as much as that "
            f"of {split_size:,} images, is at most the number of its images; papers use num_samples=50000 and "
            "split_size=5000"
        )

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        self.check_sets(samples)
        logits = samples.require_rows()
        if self.split_size is not None:
            starts = range(0, len(logits), self.split_size)
            scores = torch.stack([_score(logits[k : k + self.split_size].double()) for k in starts])
            return {"cs_ordered": float(scores.mean()), "cs_ordered_std": float(scores.std(correction=0))}
        if len(logits) < self.num_splits:
            raise ValueError(f"samples must contain at least num_splits={self.num_splits} images, got {len(logits)}.")
        result = isc_features_to_metric(logits, splits=self.num_splits)
        return {"cs": result[KEY_METRIC_ISC_MEAN], "cs_std": result[KEY_METRIC_ISC_STD]}


def _score(logits: Tensor) -> Tensor:
    """Return exp of the mean KL divergence between the class probabilities of an image and their mean: [].

    logits: [N, num_classes], float64 (Salimans et al. 2016, section 4).
    """
    log_probabilities = logits.log_softmax(dim=1)
    log_mean = log_probabilities.logsumexp(dim=0) - math.log(len(logits))
    return (log_probabilities.exp() * (log_probabilities - log_mean)).sum(dim=1).mean().exp()

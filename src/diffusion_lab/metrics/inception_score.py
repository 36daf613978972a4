"""Inception Score: confidence of a classifier on single images and diversity of its predictions."""

from dataclasses import dataclass
from typing import ClassVar

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
    the results are the mean and the standard deviation of the scores of the parts.
    num_splits: number of parts.
    Raises ValueError unless num_splits is at least 1; `measure` raises it for fewer samples than parts.
    """

    choice: ClassVar[str] = "is"
    meaning: ClassVar[str] = "confidence and diversity of the predicted classes"
    higher_is_better: ClassVar[bool] = True

    num_splits: int = 10

    output: ClassVar[str] = "logits"
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_splits < 1:
            raise ValueError(f"num_splits must be at least 1, got {self.num_splits}.")

    @property
    def min_images(self) -> int:
        return MIN_IMAGES_PER_SPLIT * self.num_splits

    def caution(self, num_images: int) -> str | None:
        per_split = num_images // self.num_splits
        if per_split >= MEANINGFUL_IMAGES_PER_SPLIT:
            return None
        return (
            f"means little: each of the {self.num_splits} splits has {per_split} images, and the score of a split is "
            "at most the number of its images; papers use 5,000 per split"
        )

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        self.check_sets(samples)
        logits = samples.require_rows()
        if len(logits) < self.num_splits:
            raise ValueError(f"samples must contain at least num_splits={self.num_splits} images, got {len(logits)}.")
        result = isc_features_to_metric(logits, splits=self.num_splits)
        return {"cs": result[KEY_METRIC_ISC_MEAN], "cs_std": result[KEY_METRIC_ISC_STD]}

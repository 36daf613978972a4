"""Precision and recall: the fraction of realistic samples, and the fraction of the data that samples cover."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric, caution_for_neighbors, caution_for_unequal_sizes


@dataclass(frozen=True)
class PrecisionRecall(Metric):
    """Precision and recall of samples (Kynkäänniemi et al. 2019), computed by torch-fidelity.

    Precision: fraction of the samples that are in a ball around the features of a reference image.
    Recall: fraction of the reference images that are in a ball around the features of a sample.
    num_neighbors: number k; the radius of a ball is the distance from its center to the k-th nearest image of its set.
    Raises ValueError unless num_neighbors is at least 1; `measure` raises it for sets of at most num_neighbors images.

    >>> from diffusion_lab import FashionCNN, FeatureSet, PrecisionRecall
    >>> features = FeatureSet.of(torch.arange(20.0).view(10, 2))  # of 10 images
    >>> PrecisionRecall(FashionCNN()).measure(features, features)
    {'precision': 1.0, 'recall': 1.0}
    """

    choice: ClassVar[str] = "precision_recall"
    meanings: ClassVar[Mapping[str, str]] = {
        "precision": "fraction of the samples that lie among the reference images",
        "recall": "fraction of the reference images that lie among the samples",
    }
    higher_is_better: ClassVar[bool] = True

    num_neighbors: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_neighbors < 1:
            raise ValueError(f"num_neighbors must be at least 1, got {self.num_neighbors}.")

    @property
    def min_images(self) -> int:
        return self.num_neighbors + 1

    def caution(self, num_images: int) -> str | None:
        return caution_for_neighbors(num_images, self.num_neighbors)

    def caution_for_sizes(self, num_samples: int, num_reference: int) -> str | None:
        few = super().caution_for_sizes(num_samples, num_reference)
        return few or caution_for_unequal_sizes(num_samples, num_reference)

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        self.check_sets(samples, reference)
        # The distances are computed in batches: distances between two sets of 50,000 images take 10 GB, and there are
        # four such matrices.
        settings = {"prc_neighborhood": self.num_neighbors, "prc_batch_size": 2000, "save_cpu_ram": True}
        generated, real = samples.require_rows(), reference.require_rows()
        size = min(len(generated), len(real))
        if size <= self.num_neighbors:
            raise ValueError(f"both sets must have more than num_neighbors={self.num_neighbors} images, got {size}.")
        result = prc_features_to_metric(generated, real, verbose=False, **settings)
        return {"precision": result[KEY_METRIC_PRECISION], "recall": result[KEY_METRIC_RECALL]}

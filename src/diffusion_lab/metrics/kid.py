"""Kernel distance between two sets of images; with Inception features, this is the KID."""

from dataclasses import dataclass, replace
from typing import ClassVar

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric

MEANINGFUL_IMAGES = 50
"""Images per subset below which the standard deviation of the kernel distance is as large as typical distances."""


@dataclass(frozen=True)
class KernelDistance(Metric):
    """Unbiased squared MMD with the kernel (x'y / D + 1)^3 (Binkowski et al. 2018), computed by torch-fidelity.

    D is the number of features. The results are the mean and the standard deviation over num_subsets pairs of subsets,
    which are chosen at random with a fixed seed.

    num_subsets: number of pairs of subsets, at least 1.
    subset_size: number of images in a subset, at least 2, limited to the size of the smaller set.
    Raises ValueError for smaller numbers.

    >>> from diffusion_lab import FashionCNN, FeatureSet, KernelDistance
    >>> one, other = FeatureSet.of(torch.zeros(10, 2)), FeatureSet.of(torch.ones(10, 2))
    >>> KernelDistance(FashionCNN(), num_subsets=2).measure(one, other)  # 1 + 2^3 - 2
    {'kd': 7.0, 'kd_std': 0.0}
    """

    choice: ClassVar[str] = "kid"
    meaning: ClassVar[str] = "kernel distance of the features"

    num_subsets: int = 100
    subset_size: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, minimum in (("num_subsets", 1), ("subset_size", 2)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}.")

    def caution(self, num_images: int) -> str | None:
        size = min(self.subset_size, num_images)
        if size < MEANINGFUL_IMAGES:
            return f"means little: each subset has only {size} images; papers use 1,000"
        if num_images > self.subset_size:
            return None
        return (
            f"has a standard deviation that is too small: with subset_size={self.subset_size}, each subset contains "
            "all images of the smaller set"
        )

    def for_sizes(self, num_samples: int, num_reference: int) -> "KernelDistance":
        return replace(self, subset_size=min(self.subset_size, num_samples, num_reference))

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        self.check_sets(samples, reference)
        rows = samples.require_rows(), reference.require_rows()
        size = self.for_sizes(*map(len, rows)).subset_size
        result = kid_features_to_metric(*rows, kid_subsets=self.num_subsets, kid_subset_size=size, verbose=False)
        return {"kd": result[KEY_METRIC_KID_MEAN], "kd_std": result[KEY_METRIC_KID_STD]}

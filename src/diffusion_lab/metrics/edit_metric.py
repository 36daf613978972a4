"""Base class of metrics of the results of an edit, which are computed for each source image."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from diffusion_lab.contracts import DataclassInterface
from diffusion_lab.inverse_problems import Measurement
from diffusion_lab.metrics.metric import abbreviate_count


class EditMetric(DataclassInterface):
    """Metric of the results that an edit generates from a source image, such as the PSNR.

    choice: name of the metric's file in conf/metrics.
    meaning: what the value is, in a few words.  higher_is_better: see `Metric`.
    min_results: smallest number of results of each source.
    needs_measurement: whether the edit must have a measurement of the source.
    needs_source: whether results are compared with their source; if so, their mean is compared with it, too.
    """

    choice: ClassVar[str]
    meaning: ClassVar[str] = ""
    higher_is_better: ClassVar[bool | None] = False
    min_results: ClassVar[int] = 1
    needs_measurement: ClassVar[bool] = False
    needs_source: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """First part of the name of a value."""
        return self.choice

    def for_images(self, shape: tuple[int, int, int]) -> "EditMetric":
        """Return the metric that is measured for images of the shape [C, H, W].

        Raises ValueError if such images cannot be measured.
        """
        return self

    @abstractmethod
    def measure(self, results: Tensor, source: Tensor, measurement: Measurement | None) -> float:
        """Return the value of one source: the mean over its results, unless the metric compares them.

        results: uint8 [R, C, H, W].  source: uint8 [1, C, H, W].
        measurement: measurement of R copies of the source; None for an edit without one.
        """

    def protocol(self) -> dict[str, Any]:
        """Return the feature network of the metric, for fingerprints."""
        return {}

    def full_name(self, num_results: int, source: str, *, of_mean: bool = False) -> str:
        """Return the full name of a value, for example psnr_test_64 or psnr_of_mean_test_64.

        num_results: number of all results, or of means.  source: name of the set of the source images.
        """
        return "_".join([self.kind, *(["of_mean"] if of_mean else []), source, abbreviate_count(num_results)])

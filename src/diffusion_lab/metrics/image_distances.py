"""Differences between the results of an edit and their source, their measurement, and each other."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusion_lab.inverse_problems import Measurement
from diffusion_lab.metrics.edit_metric import EditMetric
from diffusion_lab.pixels import from_uint8

SSIM_WINDOW = 11
"""Side in pixels of the Gaussian window of the SSIM (Wang et al. 2004, section III.C)."""


def mean_square(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean square of the difference in gray levels of each pair of images, float64 [R].

    first, second: uint8 [R, C, H, W], or [1, C, H, W].
    """
    return (first.double() - second.double()).square().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class PSNR(EditMetric):
    """Peak signal-to-noise ratio to the source, 10 log10(255^2 / mean square difference), in decibels.

    An image that equals its source has the PSNR of an image with one value that differs by one gray level.

    >>> from diffusion_lab import PSNR
    >>> source = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    >>> round(PSNR().measure(source + 10, source, None), 2)
    28.13
    """

    choice: ClassVar[str] = "psnr"
    meaning: ClassVar[str] = "peak signal-to-noise ratio to the source, in dB"
    higher_is_better: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True

    def measure(self, results: Tensor, source: Tensor, measurement: Measurement | None) -> float:
        least = 1 / math.prod(results.shape[1:])
        return float((10 * (255**2 / mean_square(results, source).clamp(min=least)).log10()).mean())


@dataclass(frozen=True)
class RMSE(EditMetric):
    """Root mean square difference from the source, in gray levels."""

    choice: ClassVar[str] = "rmse"
    meaning: ClassVar[str] = "root mean square difference from the source, in gray levels"
    needs_source: ClassVar[bool] = True

    def measure(self, results: Tensor, source: Tensor, measurement: Measurement | None) -> float:
        return float(mean_square(results, source).sqrt().mean())


@dataclass(frozen=True)
class SSIM(EditMetric):
    """Structural similarity to the source (Wang et al. 2004), with a Gaussian window of standard deviation 1.5."""

    choice: ClassVar[str] = "ssim"
    meaning: ClassVar[str] = "structural similarity to the source"
    higher_is_better: ClassVar[bool] = True
    needs_source: ClassVar[bool] = True

    def for_images(self, shape: tuple[int, int, int]) -> EditMetric:
        if min(shape[1:]) < SSIM_WINDOW:
            raise ValueError(
                f"metrics must not contain ssim for images smaller than its window ({SSIM_WINDOW} x {SSIM_WINDOW} "
                f"pixels), got images of {shape[1]} x {shape[2]} pixels."
            )
        return self

    def measure(self, results: Tensor, source: Tensor, measurement: Measurement | None) -> float:
        levels, reference = results.double(), source.double().expand(results.shape)
        found = structural_similarity_index_measure(levels, reference, data_range=255.0, reduction="none")
        assert isinstance(found, Tensor)
        return float(found.mean())


@dataclass(frozen=True)
class Consistency(EditMetric):
    """Root mean square difference between the measurement of a result and the measurement of the source.

    Its value for the sources is the standard deviation of the noise in the measurement. A value of 0.3 results from the
    rounding of the results to gray levels.
    """

    choice: ClassVar[str] = "consistency"
    meaning: ClassVar[str] = "root mean square of A x - y, in gray levels"
    needs_measurement: ClassVar[bool] = True

    def measure(self, results: Tensor, source: Tensor, measurement: Measurement | None) -> float:
        assert measurement is not None
        return float(measurement.inconsistency(from_uint8(results)).double().mean()) * 127.5


@dataclass(frozen=True)
class Diversity(EditMetric):
    """Mean root mean square difference between two results of the same source, in gray levels."""

    choice: ClassVar[str] = "diversity"
    meaning: ClassVar[str] = "root mean square difference between results of the same source, in gray levels"
    higher_is_better: ClassVar[bool | None] = None
    min_results: ClassVar[int] = 2

    def measure(self, results: Tensor, source: Tensor, measurement: Measurement | None) -> float:
        first, second = torch.triu_indices(len(results), len(results), offset=1)
        return float(mean_square(results[first], results[second]).sqrt().mean())

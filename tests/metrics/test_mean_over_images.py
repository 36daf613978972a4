from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffusion_lab.metrics.mean_over_images import MeanOverImages


@dataclass(frozen=True)
class ThreeTerms:
    name = "bits_bound"
    num_terms = 3

    def __call__(self, denoiser: object, x_0: Tensor, condition: object, noise: object) -> Tensor:
        return x_0


def test_the_mean_does_not_depend_on_the_batches() -> None:
    terms = torch.randn(7, 3, dtype=torch.float64)
    metric = MeanOverImages(ThreeTerms())
    metric.update(terms[:5])
    metric.update(terms[5:])
    assert float(metric.compute()) == pytest.approx(float(terms.sum(1).mean()), rel=1e-12)
    assert metric.terms.tolist() == pytest.approx(terms.mean(0).tolist(), rel=1e-12)


@pytest.mark.parametrize(("count", "name"), [(7, "bits_bound_test_7"), (2000, "bits_bound_test_2k")])
def test_the_name_contains_the_split_and_the_number_of_images(count: int, name: str) -> None:
    metric = MeanOverImages(ThreeTerms(), split="test")
    metric.update(torch.zeros(count, 3))
    metric.compute()
    assert metric.name == name


def test_a_mean_without_images_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="bits_bound needs at least 1 image, got 0"),
        pytest.warns(UserWarning, match="before the ``update`` method"),
    ):
        MeanOverImages(ThreeTerms()).compute()


def test_num_images_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_images must be at least 1 \(null for all images\), got 0"):
        MeanOverImages(ThreeTerms(), num_images=0)

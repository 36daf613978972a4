from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.precision_recall import PrecisionRecall
from support.fake_features import StandIn


def normal(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, 12, generator=torch.Generator().manual_seed(seed))


class LargestTensor(TorchFunctionMode):
    """Records the number of elements of the largest tensor that a torch function returned."""

    size = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            self.size = max(self.size, output.numel())
        return output


def measured(samples: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    return PrecisionRecall(StandIn()).measure(FeatureSet.of(samples), FeatureSet.of(reference))


def test_a_set_with_itself_has_precision_and_recall_1() -> None:
    assert measured(normal(300), normal(300)) == {"precision": 1.0, "recall": 1.0}


def test_samples_of_half_of_the_data_have_precision_1_and_recall_one_half() -> None:
    data = torch.cat([normal(200), 100 + normal(200, 1)])
    found = measured(normal(200), data)
    assert found["precision"] == 1.0
    assert found["recall"] == pytest.approx(0.5, abs=0.01)


def test_samples_half_of_which_are_outside_have_precision_one_half_and_recall_1() -> None:
    found = measured(torch.cat([normal(200), 100 + normal(200, 1)]), normal(200))
    assert found["precision"] == pytest.approx(0.5, abs=0.01)
    assert found["recall"] == 1.0


def test_the_radius_is_the_distance_to_the_third_neighbor() -> None:
    line = torch.zeros(5, 12)
    line[:, 0] = torch.tensor([0.0, 1, 3, 7, 15])  # the third neighbors of 0 and 15 are at distances 7 and 14
    inside, outside = torch.zeros(4, 12), torch.zeros(4, 12)
    inside[:, 0], outside[:, 0] = torch.tensor([-6.9, -6.8, 28.9, 28.8]), torch.tensor([-7.1, -7.2, 29.1, 29.2])
    assert measured(inside, line)["precision"] == 1.0
    assert measured(outside, line)["precision"] == 0.0
    nearest = PrecisionRecall(StandIn(), 1).measure(FeatureSet.of(inside), FeatureSet.of(line))
    assert nearest["precision"] == 0.0  # -6.8 is outside the ball around 0 with radius 1


def test_distances_of_all_pairs_are_computed_in_batches() -> None:
    with LargestTensor() as largest:
        PrecisionRecall(StandIn()).measure(FeatureSet.of(normal(4100)), FeatureSet.of(normal(4200)))
    assert 4100 * 1000 < largest.size <= 4200 * 2000


def test_sets_must_have_more_images_than_neighbors() -> None:
    assert PrecisionRecall(StandIn()).min_images == 4
    assert measured(normal(4), normal(4)) == {"precision": 1.0, "recall": 1.0}
    for sizes in ((3, 9), (9, 3)):
        with pytest.raises(ValueError, match="both sets must have more than num_neighbors=3 images, got 3"):
            measured(*map(normal, sizes))
    with pytest.raises(ValueError, match="num_neighbors must be at least 1, got 0"):
        PrecisionRecall(StandIn(), 0)


def test_sets_of_very_different_sizes_are_noted() -> None:
    metric = PrecisionRecall(StandIn())
    assert metric.caution_for_sizes(50_000, 25_000) is None
    assert "200 samples and 9,000 reference images" in str(metric.caution_for_sizes(200, 9_000))

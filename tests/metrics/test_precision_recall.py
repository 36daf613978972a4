from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.precision_recall import PrecisionRecall
from support.fake_features import StandIn


def normal(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, 12, generator=torch.Generator().manual_seed(seed))


class Largest(TorchFunctionMode):
    """Remembers the size of the largest tensor that torch answered."""

    size = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if isinstance(answer, torch.Tensor):
            self.size = max(self.size, answer.numel())
        return answer


def measured(samples: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    return PrecisionRecall(StandIn()).measure(FeatureSet.of(samples), FeatureSet.of(reference))


def test_a_set_with_itself_has_precision_and_recall_1() -> None:
    assert measured(normal(300), normal(300)) == {"precision": 1.0, "recall": 1.0}


def test_a_half_of_the_data_has_precision_1_and_recall_a_half() -> None:
    data = torch.cat([normal(200), 100 + normal(200, 1)])
    found = measured(normal(200), data)
    assert found["precision"] == 1.0
    assert found["recall"] == pytest.approx(0.5, abs=0.01)


def test_a_half_of_the_samples_astray_has_precision_a_half_and_recall_1() -> None:
    found = measured(torch.cat([normal(200), 100 + normal(200, 1)]), normal(200))
    assert found["precision"] == pytest.approx(0.5, abs=0.01)
    assert found["recall"] == 1.0


def test_balls_reach_to_the_third_neighbour() -> None:
    line = torch.zeros(5, 12)
    line[:, 0] = torch.tensor([0.0, 1, 3, 7, 15])  # the third neighbours of 0 and of 15 are 7 and 14 away
    inside, outside = torch.zeros(4, 12), torch.zeros(4, 12)
    inside[:, 0], outside[:, 0] = torch.tensor([-6.9, -6.8, 28.9, 28.8]), torch.tensor([-7.1, -7.2, 29.1, 29.2])
    assert measured(inside, line)["precision"] == 1.0
    assert measured(outside, line)["precision"] == 0.0
    nearest = PrecisionRecall(StandIn(), 1).measure(FeatureSet.of(inside), FeatureSet.of(line))
    assert nearest["precision"] == 0.0  # -6.8 is outside of 0's ball, that reaches to 1


def test_distances_of_all_pairs_are_never_in_memory_at_once() -> None:
    with Largest() as largest:
        PrecisionRecall(StandIn()).measure(FeatureSet.of(normal(4100)), FeatureSet.of(normal(4200)))
    assert 4100 * 1000 < largest.size <= 4200 * 2000


def test_it_needs_one_image_more_than_neighbours() -> None:
    assert PrecisionRecall(StandIn()).min_images == 4
    assert measured(normal(4), normal(4)) == {"precision": 1.0, "recall": 1.0}
    for sizes in ((3, 9), (9, 3)):
        with pytest.raises(ValueError, match="both sets must hold more than num_neighbours=3 images, got 3"):
            measured(*map(normal, sizes))
    with pytest.raises(ValueError, match="num_neighbours must be at least 1, got 0"):
        PrecisionRecall(StandIn(), 0)

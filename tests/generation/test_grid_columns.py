"""Number of columns of an image grid in which each column shows one class."""

from typing import Any

import pytest

from diffusion_lab.generation.grid_columns import num_columns
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.networks import Labels
from support.small_runs import small_module


@pytest.mark.parametrize(
    ("num_classes", "label", "columns"),
    [(0, None, 8), (3, None, 9), (10, None, 10), (12, None, 12), (30, None, 8), (10, 4, 8), (10, [7, 2, 5, 0], 8),
     (10, [1, 3], 10), (10, [1, 3, 1], 9), (10, "random", 8)],
)  # fmt: skip
def test_each_column_shows_one_class_if_the_classes_are_in_turn(num_classes: int, label: Any, columns: int) -> None:
    images = SeededImages(small_module(Labels(num_classes) if num_classes else None), label=label)
    assert num_columns(images) == columns
    classes = images.labels(range(3 * columns))
    if classes is not None and label != "random" and num_classes < 30:
        assert (classes.view(3, columns) == classes[:columns]).all()

"""A step is the same however its batch is divided: into accumulated batches, among ranks, or both."""

import csv
from pathlib import Path

import pytest
import torch

from diffusion_lab.networks import Labels
from support.killed_runs import Layout, Recipe, outcome, run
from support.small_runs import small_module

RANKS = [Layout(num_processes=2), Layout(accumulate=2, num_processes=2)]
LAYOUTS = [Layout(accumulate=2), *RANKS]


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """Return the change of each tensor of network and average since initialization."""
    start = small_module(Labels(3, dropout=0.2)).state_dict()
    state = outcome(folder)[1]["state_dict"]
    change = {key: state[key].double() - start[key].double() for key in start if ".network." in f".{key}"}
    return {key: difference for key, difference in change.items() if difference.norm() > 0}


@pytest.mark.parametrize(
    ("precision", "tolerance", "num_steps", "layouts"),
    [
        ("64-true", 1e-10, 5, RANKS),
        pytest.param("64-true", 1e-10, 10, LAYOUTS, marks=pytest.mark.full),
        pytest.param("32-true", 1e-5, 30, LAYOUTS, marks=pytest.mark.full),
    ],
)
def test_losses_and_weights_are_the_same_up_to_the_rounding_of_sums(
    precision: str, tolerance: float, num_steps: int, layouts: list[Layout], tmp_path: Path
) -> None:
    recipe = Recipe(num_steps=num_steps, dropout=0.0, precision=precision, lr=1e-3)
    assert run(tmp_path / "undivided", Layout(), recipe=recipe)
    expected = changes(tmp_path / "undivided")
    assert len(expected) > 100
    for number, layout in enumerate(layouts):
        folder = tmp_path / str(number)
        assert run(folder, layout, recipe=recipe)
        assert losses(folder) == pytest.approx(losses(tmp_path / "undivided"), rel=tolerance)
        for name, change in changes(folder).items():
            assert change.norm().item() == pytest.approx(expected[name].norm().item(), rel=tolerance), (layout, name)

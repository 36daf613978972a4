"""A step is the same however its batch is cut: by accumulation, by processes, by both."""

import csv
from pathlib import Path

import pytest
import torch

from diffusion_lab.networks import Labels
from support.killed_runs import Layout, Recipe, outcome, run
from support.small_runs import small_module

LAYOUTS = [Layout(accumulate=2), Layout(num_processes=2), Layout(accumulate=2, num_processes=2)]


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """How far each tensor of network and average went from where it began."""
    start = small_module(Labels(3, dropout=0.2)).state_dict()
    state = outcome(folder)[1]["state_dict"]
    shifted = {key: state[key].double() - start[key].double() for key in start if ".network." in f".{key}"}
    return {key: change for key, change in shifted.items() if change.norm() > 0}


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("64-true", 1e-10)])
def test_losses_and_weights_are_the_same_up_to_the_rounding_of_sums(
    precision: str, tolerance: float, tmp_path: Path
) -> None:
    recipe = Recipe(num_steps=30, dropout=0.0, precision=precision, lr=1e-3)
    assert run(tmp_path / "one", Layout(), recipe=recipe)
    one = changes(tmp_path / "one")
    assert len(one) > 100
    for number, layout in enumerate(LAYOUTS):
        folder = tmp_path / str(number)
        assert run(folder, layout, recipe=recipe)
        assert losses(folder) == pytest.approx(losses(tmp_path / "one"), rel=tolerance)
        for name, change in changes(folder).items():
            assert change.norm().item() == pytest.approx(one[name].norm().item(), rel=tolerance), (layout, name)

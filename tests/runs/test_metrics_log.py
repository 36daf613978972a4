"""The plot of the metrics that a training run logged."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusion_lab.runs.metrics_log import save_curves

EARLIER_RUN = Path(__file__).parents[1] / "earlier_runs" / "v0_3" / "plain"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved during a test."""
    from matplotlib import pyplot

    saved: list[Any] = []
    monkeypatch.setattr(pyplot, "close", saved.append)
    return saved


def test_the_loss_and_each_measured_metric_of_a_run_have_a_panel(tmp_path: Path) -> None:
    shutil.copy(EARLIER_RUN / "metrics.csv", tmp_path)
    save_curves(tmp_path)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (2 * 676, 494)


def test_only_a_loss_that_spans_more_than_a_factor_of_10_has_a_logarithmic_axis(
    tmp_path: Path, figures: list[Any]
) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,after_training,fd_a_9_train,learning_rate,loss,measuring_seconds\n"
        "2,,,0.1,0.9,\n4,,,0.1,nan,\n4,,5.5,,,1.0\n6,,,0.1,0.08,\n6,1.0,5.0,,,1.0\n"
    )
    save_curves(tmp_path)
    loss, distance = figures[0].axes[:2]
    assert (loss.get_title(), loss.get_yscale()) == ("loss of single steps", "log")
    assert loss.lines[0].get_xydata().tolist() == [[2.0, 0.9], [6.0, 0.08]]
    assert (distance.get_title(), distance.get_yscale()) == ("fd_a_9_train", "linear")
    assert distance.lines[0].get_xydata().tolist() == [[4.0, 5.5], [6.0, 5.0]]


def test_the_loss_and_the_metrics_at_an_earlier_end_of_a_run_are_in_the_plot(
    tmp_path: Path, figures: list[Any]
) -> None:
    (tmp_path / "metrics.csv").write_text("step,fd_a_9_train,loss\n2,,0.9\n6,5.0,\n")
    (tmp_path / "summary_step_0000004.json").write_text('{"steps": 4, "loss": 0.7, "fd_a_9_train": 7.5, "minutes": 1}')
    save_curves(tmp_path)
    loss, distance = figures[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[2.0, 0.9], [4.0, 0.7]]
    assert distance.lines[0].get_xydata().tolist() == [[4.0, 7.5], [6.0, 5.0]]


@pytest.mark.parametrize("last", [1, 3, 40, 800_000])
def test_the_steps_of_the_plot_start_at_0_and_have_whole_numbers(last: int, tmp_path: Path, figures: list[Any]) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,loss\n{last},0.9\n")
    save_curves(tmp_path)
    (loss,) = figures[0].axes
    assert loss.get_xlim()[0] == 0 < last < loss.get_xlim()[1] < 1.1 * last
    assert len(loss.get_xticks()) > 1
    assert all(tick == round(tick) for tick in loss.get_xticks())


@pytest.mark.parametrize("content", [None, "step,loss\n", "step,loss\n1,nan\n"])
def test_a_run_that_logged_no_values_has_no_plot(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    save_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()

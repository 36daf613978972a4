"""Loggers of a run that is stopped and resumed."""

import csv
from pathlib import Path

import pytest

from diffusion_lab.training.loggers import MetricsFile, WandbRun


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()


def log(folder: Path, *rows: dict[str, float], after: int = 0) -> None:
    logger = MetricsFile(str(folder))
    logger.continue_after(after)
    for row in rows:
        logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        logger.save()


def test_a_resumed_run_drops_the_rows_of_repeated_steps_and_appends(tmp_path: Path) -> None:
    first = [{"loss": 0.1 * k, "step": k} for k in (2, 4, 6, 8)]
    log(tmp_path, *first[:2], {"distance": 7.5, "step": 4}, *first[2:])
    log(tmp_path, {"loss": 0.6, "step": 6}, after=4)
    assert lines(tmp_path) == ["step,distance,loss", "2,,0.2", "4,,0.4", "4,7.5,", "6,,0.6"]


def test_a_new_run_starts_with_an_empty_table(tmp_path: Path) -> None:
    log(tmp_path, {"loss": 0.5, "step": 2})
    log(tmp_path, {"loss": 0.25, "step": 2})
    assert lines(tmp_path) == ["step,loss", "2,0.25"]


def test_a_table_of_an_earlier_version_continues_with_the_step_first(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("distance,loss,step\n,0.5,2\n,0.12")
    log(tmp_path, {"loss": 0.25, "step": 4}, after=2)
    assert lines(tmp_path) == ["step,distance,loss", "2,,0.5", "4,,0.25"]


def test_a_resumed_run_may_log_a_new_metric(tmp_path: Path) -> None:
    log(tmp_path, {"loss": 0.5, "step": 2})
    log(tmp_path, {"loss": 0.25, "distance": 3.0, "step": 4}, after=2)
    assert lines(tmp_path) == ["step,distance,loss", "2,,0.5", "4,3.0,0.25"]


class Recorder:
    """Test double of a wandb run."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, row: dict[str, float], step: int) -> None:
        self.rows.append((step, {key: value for key, value in row.items() if key != "trainer/global_step"}))


def log_to_wandb(
    folder: Path, *rows: tuple[int, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Recorder]:
    """Log rows with a new logger; return its run id and the recorded rows."""
    recorder, init_settings = Recorder(), dict[str, str]()

    def init(**settings: str) -> Recorder:
        init_settings.update(settings)
        return recorder

    monkeypatch.setattr("wandb.init", init)
    logger = WandbRun(str(folder), project="p", offline=True)
    assert logger.experiment is recorder
    for step, row in rows:
        logger.log_metrics(row, step)
    return init_settings["id"], recorder


def test_a_run_keeps_its_id_on_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = (1, {"loss": 1.0})
    first, resumed, other = (
        log_to_wandb(tmp_path / name, row, monkeypatch=monkeypatch)[0] for name in ("one", "one", "other")
    )
    assert first == resumed
    assert first != other


def test_a_run_that_ends_before_its_first_metric_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {log_to_wandb(tmp_path, monkeypatch=monkeypatch)[0] for _ in range(2)}
    assert len(ids) == 1


def test_repeated_steps_are_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(k, {"loss": 1.0 / k}) for k in range(1, 5)]
    log_to_wandb(tmp_path, *rows, (4, {"distance": 7.0}), monkeypatch=monkeypatch)
    repeated = [
        *rows[2:],
        (4, {"distance": 7.0}),
        (4, {"share": 0.1}),
        (5, {"loss": 0.2}),
    ]  # from the checkpoint of step 2
    _, recorder = log_to_wandb(tmp_path, *repeated, monkeypatch=monkeypatch)
    assert recorder.rows == [(4, {"share": 0.1}), (5, {"loss": 0.2})]


def test_a_run_that_is_trained_further_drops_the_rows_of_its_first_end(tmp_path: Path) -> None:
    logger = MetricsFile(str(tmp_path))
    for step in (2, 4, 5):  # a run of five steps that logs every two steps and at its end
        logger.log_metrics({"loss": 0.1 * step}, step=step)
    logger.log_after_training({"distance": 7.0}, step=5)
    logger.save()
    assert lines(tmp_path)[-1].split(",").count("1.0") == 1

    further = MetricsFile(str(tmp_path))
    further.continue_after(5, log_every_n_steps=2)
    further.log_metrics({"loss": 0.6, "distance": 3.0}, step=6)
    further.save()
    with (tmp_path / "metrics.csv").open() as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert not any("after_training" in row for row in rows)
    assert rows[-1]["distance"] == "3.0"

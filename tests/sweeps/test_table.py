"""The table of a sweep, whose runs may not have finished."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.reporting.image_grids import save_sheet
from diffusion_lab.reporting.plots import save_against
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.results import write_metrics, write_summary
from diffusion_lab.sweeps.table import write_sweep_table


def started_run(sweep: Path, *overrides: str) -> Path:
    folder = sweep / "_".join(overrides).replace("=", "-")
    (folder / ".hydra").mkdir(parents=True)
    lines = [f"- {override}\n" for override in (*overrides, "data=mnist")]
    (folder / ".hydra" / "overrides.yaml").write_text("".join(lines))
    run_status.mark_running(folder)
    return folder


def finish(folder: Path, value: float) -> None:
    number = {"name": "fd_a_9_train", "value": value, "fingerprint": {"num_samples": 9, "seed": 0}}
    write_metrics(folder, {"run": str(folder), "step": 8, "numbers": [number]})
    write_summary(folder, {"steps": 8, "loss": 0.25, "fd_a_9_train": value, "images_per_second": 50.0, "minutes": 3.0})
    run_status.mark_finished(folder, value)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_an_unfinished_run_has_a_row_with_its_last_logged_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(started_run(tmp_path, "seed=10"), 4.0)
    unfinished = started_run(tmp_path, "seed=2")
    (unfinished / "metrics.csv").write_text(
        "step,after_training,fd_a_9_train,images_per_second,loss,measuring_seconds\n"
        "4,,,40.0,0.5,\n6,,,44.0,0.4,\n6,1.0,6.5,,,1.0\n"
    )
    run_status.mark_queued(started_run(tmp_path, "seed=3"))
    assert write_sweep_table(tmp_path)
    rows = table(tmp_path)
    shown = ("run", "state", "step", "loss", "fd_a_9_train", "images_per_second")
    assert [tuple(row[name] for name in shown) for row in rows] == [
        ("seed-2", "running", "6", "0.4", "6.5", "44.0"),
        ("seed-3", "queued", "", "", "", ""),
        ("seed-10", "finished", "8", "0.25", "4.0", "50.0"),
    ]
    assert all(float(row["hours"]) >= 0 for row in rows)
    assert "measuring_seconds" not in rows[0]
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    assert lines[0] == "| seed | state | step | loss | fd_a_9_train | images_per_second | hours |"
    assert "data" not in lines[0]  # the same in all runs
    assert "running" in capsys.readouterr().out


def test_a_failed_run_is_shown_with_its_reason(tmp_path: Path) -> None:
    run_status.mark_failed(started_run(tmp_path, "seed=1"), "RuntimeError: [/x] lost power")
    assert write_sweep_table(tmp_path)
    assert (table(tmp_path)[0]["state"], table(tmp_path)[0]["reason"]) == ("failed", "RuntimeError: [/x] lost power")


def test_each_swept_setting_has_a_plot_and_samples_are_on_a_contact_sheet(tmp_path: Path) -> None:
    for number, (schedule, lr) in enumerate([("linear", "1e-4"), ("linear", "1e-2"), ("cosine", "1e-4")]):
        folder = started_run(tmp_path, f"schedule={schedule}", f"lr={lr}")
        finish(folder, 4.0 + number)
        (folder / "samples").mkdir()
        Image.new("RGB", (100, 50), (80 * number, 0, 0)).save(folder / "samples" / "step_0000008.png")
    assert write_sweep_table(tmp_path)
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"against_schedule.png", "against_lr.png", "contact_sheet.png"}


def test_a_contact_sheet_shows_all_images_at_the_same_width_in_the_given_order(tmp_path: Path) -> None:
    colors = {"seed=1": (255, 0, 0), "seed=2 and a label that takes more than one line of its tile": (0, 0, 255)}
    files = {}
    for number, (label, color) in enumerate(colors.items()):
        files[label] = tmp_path / f"{number}.png"
        Image.new("RGB", (40 * (number + 1), 40), color).save(files[label])
    save_sheet(files, tmp_path / "sheet.png", width=200)
    with Image.open(tmp_path / "sheet.png") as opened:
        sheet = np.asarray(opened).astype(int)
    red, blue = ((sheet - color == 0).all(axis=2) for color in colors.values())
    assert [int(found.any(axis=0).sum()) for found in (red, blue)] == [200, 200]
    assert [int(found.any(axis=1).sum()) for found in (red, blue)] == [200, 100]
    assert np.argmax(red.any(axis=0)) < np.argmax(blue.any(axis=0))


def test_numbers_have_a_numeric_axis_and_names_a_categorical_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot

    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    save_against({"fd": [("0.1", 3.0), ("0.001", 5.0), ("0.1", 1.0)]}, "lr", tmp_path / "a.png")
    save_against({"fd": [("linear", 3.0), ("cosine", 5.0)]}, "schedule", tmp_path / "b.png")
    (numbers,), (names,) = (figure.axes for figure in figures)
    assert numbers.get_xscale() == "log"
    assert numbers.lines[0].get_xydata().tolist() == [[0.001, 5.0], [0.1, 2.0]]  # the line connects the means
    assert sorted(numbers.collections[0].get_offsets().tolist()) == [[0.001, 5.0], [0.1, 1.0], [0.1, 3.0]]
    assert [label.get_text() for label in names.get_xticklabels()] == ["linear", "cosine"]


def test_the_command_shows_a_sweep_and_rejects_other_folders(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, str(Path(__file__).parents[2] / "src" / "sweep.py"), "status", str(tmp_path)]
    rejected = subprocess.run(command, capture_output=True, text=True)
    assert (rejected.returncode, rejected.stderr) == (
        1,
        f"error: `folder` must be a sweep folder, a run in it or last, got {tmp_path}, which has no status.json.\n",
    )
    finish(started_run(tmp_path, "seed=1"), 4.0)
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished" in done.stdout
    assert json.loads((tmp_path / "seed-1" / "status.json").read_text())["state"] == "finished"

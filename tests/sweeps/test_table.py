"""The table of a sweep, whose runs may not have finished."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lab.reporting import plots
from diffusion_lab.reporting.image_grids import save_sheet
from diffusion_lab.reporting.plots import save_against
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.results import write_metrics, write_summary
from diffusion_lab.runs.status import Status
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
    assert [float(row["minutes"]) for row in rows[1:]] == pytest.approx([0.0, 3.0], abs=0.1)
    assert 0 <= float(rows[0]["minutes"]) < 1
    assert "measuring_seconds" not in rows[0]
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    assert lines[0] == "| seed | state | step | loss | fd_a_9_train | images_per_second | duration |"
    assert "data" not in lines[0]  # the same in all runs
    assert "running" in capsys.readouterr().out


def test_a_damaged_file_of_one_run_leaves_out_only_its_own_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    damaged = {1: "metrics.json", 2: "summary.json", 3: "status.json", 4: "metrics.csv", 5: ".hydra/overrides.yaml"}
    for seed in range(6):
        folder = started_run(tmp_path, f"seed={seed}")
        if seed != 4:
            finish(folder, float(seed))
        if seed in damaged:
            (folder / damaged[seed]).write_bytes(b"{\xff" * 100_000)  # csv has a limit for fields
    assert write_sweep_table(tmp_path)
    shown = {row["run"]: (row["state"], row["fd_a_9_train"]) for row in table(tmp_path)}
    assert shown == {
        "seed-0": ("finished", "0.0"),
        "seed-1": ("finished", ""),
        "seed-2": ("finished", ""),
        "seed-3": ("unknown", "3.0"),
        "seed-4": ("running", ""),
        "seed-5": ("finished", ""),
    }
    printed = capsys.readouterr().out
    assert "\nseed-3: status.json cannot be read as this package writes it, so that the state is unknown\n" in printed
    notes = {record.getMessage().split(" cannot ")[0] for record in caplog.records}
    assert notes == {str(tmp_path / f"seed-{seed}" / name) for seed, name in damaged.items() if seed != 3}


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
    lines = {"seed=1": [("0.1", 3.0, 0.5), ("0.001", 5.0, 0.0)], "seed=2": [("0.1", 1.0, 0.0)]}
    save_against({"fd": lines}, "lr", ["0.1", "0.001"], tmp_path / "a.png")
    save_against({"fd": {"": [("b", 5.0, 0.0), ("c", 3.0, 0.0)]}}, "x", ["c", "b"], tmp_path / "b.png")
    (numbers,), (names,) = (figure.axes for figure in figures)
    assert numbers.get_xscale() == "log"
    first, second = (container.lines[0].get_xydata().tolist() for container in numbers.containers)
    assert (first, second) == ([[0.001, 5.0], [0.1, 3.0]], [[0.1, 1.0]])
    (bars,) = (bars.get_segments() for bars in numbers.containers[0].lines[2])
    assert [[y for _, y in bar] for bar in bars] == [[5.0, 5.0], [2.5, 3.5]]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["seed=1", "seed=2"]
    assert [label.get_text() for label in names.get_xticklabels()] == ["c", "b"]
    assert not figures[1].legends


def swept_over_seeds(folder: Path) -> None:
    """Write the results of `schedule=linear,cosine lr=1e-4,1e-2 seed=1,2,3`."""
    for number, (schedule, lr, seed) in enumerate(itertools.product(["linear", "cosine"], ["1e-4", "1e-2"], [1, 2, 3])):
        finish(started_run(folder, f"schedule={schedule}", f"lr={lr}", f"seed={seed}"), float(number + (seed == 3)))
    typed = ["schedule=linear,cosine", "lr=1e-4,1e-2", "seed=1,2,3"]
    OmegaConf.save(OmegaConf.create({"hydra": {"overrides": {"task": typed}}}), folder / "multirun.yaml")


def test_a_sweep_over_seeds_has_a_table_with_mean_and_standard_deviation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept_over_seeds(tmp_path)
    assert write_sweep_table(tmp_path)
    with (tmp_path / "sweep_over_seeds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["schedule"], row["lr"], row["num_seeds"]) for row in rows] == [
        ("linear", "1e-4", "3"), ("linear", "1e-2", "3"), ("cosine", "1e-4", "3"), ("cosine", "1e-2", "3"),
    ]  # fmt: skip
    assert float(rows[1]["mean_fd_a_9_train"]) == pytest.approx((3 + 4 + 6) / 3)
    assert float(rows[1]["std_fd_a_9_train"]) == pytest.approx(np.std([3, 4, 6], ddof=1))
    assert "| linear | 1e-2 | 3 | 0.25 ± 0 | 4.333 ± 1.528 |" in (tmp_path / "sweep.md").read_text()
    assert "4.333 ± 1.528" in capsys.readouterr().out


def test_settings_whose_runs_have_no_results_have_no_row_in_the_table_over_seeds(tmp_path: Path) -> None:
    for seed in (1, 2):
        finish(started_run(tmp_path, "lr=1e-4", f"seed={seed}"), float(seed))
        run_status.mark_failed(started_run(tmp_path, "lr=1e9", f"seed={seed}"), "RuntimeError: no")
    assert write_sweep_table(tmp_path)
    with (tmp_path / "sweep_over_seeds.csv").open() as file:
        assert [(row["lr"], row["num_seeds"]) for row in csv.DictReader(file)] == [("1e-4", "2")]


def test_runs_without_a_common_setting_are_not_averaged(tmp_path: Path) -> None:
    for seed, lr in enumerate(("1e-4", "1e-2")):
        finish(started_run(tmp_path, f"lr={lr}", f"seed={seed}"), float(seed))
    assert write_sweep_table(tmp_path)
    assert not (tmp_path / "sweep_over_seeds.csv").exists()


def test_a_plot_has_one_line_for_each_combination_of_the_other_settings_in_typed_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plotted: list[Any] = []
    monkeypatch.setattr(plots, "save_against", lambda *arguments: plotted.append(arguments))
    swept_over_seeds(tmp_path)
    assert write_sweep_table(tmp_path)
    assert [path.name for *_, path in plotted] == ["against_schedule.png", "against_lr.png"]  # and none for the seed
    panels, key, order, _ = plotted[0]
    assert (key, order) == ("schedule", ["linear", "cosine"])
    (lines,) = panels.values()
    assert list(panels) == ["fd_a_9_train\n(lower is better)"]
    std = float(np.std([0, 1, 3], ddof=1))
    assert {label: [(x, round(mean, 9), round(s, 9)) for x, mean, s in points] for label, points in lines.items()} == {
        "lr=1e-4": [("linear", round(4 / 3, 9), round(std, 9)), ("cosine", round(22 / 3, 9), round(std, 9))],
        "lr=1e-2": [("linear", round(13 / 3, 9), round(std, 9)), ("cosine", round(31 / 3, 9), round(std, 9))],
    }


def test_the_state_of_a_sweep_is_summarized_with_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Status, "hours", lambda self, last=None: {"finished": 1.0, "running": 0.5}.get(self.state, 0.0))
    finish(started_run(tmp_path, "seed=1"), 4.0)
    running = started_run(tmp_path, "seed=2")
    (running / "config.yaml").write_text("trainer:\n  max_steps: 100\n")
    (running / "output.log").write_text("step 1/100  loss 0.9\nstep 25/100  loss 0.5\n")
    run_status.mark_queued(started_run(tmp_path, "seed=3"))
    assert write_sweep_table(tmp_path)
    # The running run needs 2 hours in total, so 1.5 more; the queued run needs the mean of 1 and 2 hours.
    assert capsys.readouterr().out.splitlines()[-2] == "1 finished, 1 running, 1 queued; about 3:00:00 left"
    assert [row["step"] for row in table(tmp_path)] == ["8", "25", ""]
    (running / "output.log").unlink()
    (running / "metrics.csv").write_text("step,images_per_second\n5,4.0\n10,2.0\n")
    (running / "config.yaml").write_text("trainer:\n  max_steps: 190\ndata:\n  batch_size: 20\n")
    assert write_sweep_table(tmp_path)
    # 180 steps x 20 images / 2 per second = 0.5 hours; the queued run needs the mean of 1 and 0.5 + 0.5 hours.
    assert capsys.readouterr().out.splitlines()[-2] == "1 finished, 1 running, 1 queued; about 1:30:00 left"


def test_runs_that_were_stopped_are_shown_as_interrupted_with_the_way_to_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(started_run(tmp_path, "seed=1"), 4.0)
    run_status.mark_failed(started_run(tmp_path, "seed=2"), "interrupted by SIGINT after step 20")
    for seed in (3, 4):
        run_status.mark_not_started(started_run(tmp_path, f"seed={seed}"), "the sweep was interrupted")
    assert write_sweep_table(tmp_path)
    assert [row["state"] for row in table(tmp_path)] == ["finished", "interrupted", "not started", "not started"]
    assert table(tmp_path)[1]["step"] == "20"
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "seed-2: interrupted by SIGINT after step 20",
        "seed-3, seed-4: not started: the sweep was interrupted",
        "1 finished, 1 interrupted, 2 not started; the command that started the sweep continues it",
        f"results are in {tmp_path}: sweep.csv, sweep.md",
    ]


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


def test_the_table_of_a_strange_sweep_replaces_links_and_changes_no_other_file(tmp_path: Path) -> None:
    outside, sweep = tmp_path / "outside", tmp_path / "sweep"
    outside.mkdir()
    for seed in (1, 2):
        folder = started_run(sweep, f"seed={seed}", f"optimizer.lr=0.00{seed}")
        (folder / "samples").mkdir()
        Image.new("RGB", (8, 8)).save(folder / "samples" / "step_8.png")
        finish(folder, float(seed))
    write_sweep_table(sweep)
    written = [path.name for path in sweep.iterdir() if path.is_file()]
    assert {"sweep.csv", "sweep.md", "contact_sheet.png", "against_optimizer.lr.png"} <= set(written)
    for name in written:
        for end in ("", ".partial"):
            (outside / f"{name}{end}").write_text("mine")
            (sweep / f"{name}{end}").unlink(missing_ok=True)
            (sweep / f"{name}{end}").symlink_to(outside / f"{name}{end}")
    write_sweep_table(sweep)
    assert {path.read_text() for path in outside.iterdir()} == {"mine"}
    assert not any((sweep / name).is_symlink() for name in written)


def test_a_figure_has_a_limited_number_of_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MAX_PANELS", 2)
    panels = [{f"m{number}": [(1.0, 2.0)] for number in range(count)} for count in (2, 50)]
    for number, each in enumerate(panels):
        plots.save_curves(each, tmp_path / f"{number}.png")
    with Image.open(tmp_path / "0.png") as few, Image.open(tmp_path / "1.png") as many:
        assert few.size == many.size

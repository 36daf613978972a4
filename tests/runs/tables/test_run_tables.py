"""Results of runs, and tables of them."""

import csv
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib import pyplot
from PIL import Image

from diffusion_lab.runs.results import write_metrics, write_summary
from diffusion_lab.runs.tables.comparable import write_and_print_table
from diffusion_lab.runs.tables.table import find_rows
from diffusion_lab.sweeps.table import write_sweep_table


def measured(
    folder: Path, value: float, *, num_steps: int = 10, seed: int = 0, step: int = 100, overrides: tuple[str, ...] = (),
    run: str = "logs/train/a", metrics: Sequence[str] = ("fd",), **fields: Any,
) -> Path:  # fmt: skip
    """Write the files of an evaluation and return its folder."""
    fingerprint = {
        "num_samples": 50, "sampler": {"name": "DDIM", "num_steps": num_steps}, "seed": seed, "precision": "32-true",
        "schedule": {"name": "LinearSchedule"},
    } | fields  # fmt: skip
    numbers = [{"name": f"{kind}_stand_in_50_train", "value": value, "fingerprint": fingerprint} for kind in metrics]
    write_metrics(folder, {"run": run, "checkpoint": "last.ckpt", "step": step, "numbers": numbers})
    write_summary(folder, {"fd_stand_in_50_train": value, "minutes": 1.5})
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides) or "[]")
    return folder


def with_bound(folder: Path, value: float = 3.5, num_images: int = 5) -> Path:
    """Add the bound of some images of the data set to the results of an evaluation, and return its folder."""
    record = json.loads((folder / "metrics.json").read_text())
    schedule = {"name": "LinearSchedule"}
    fingerprint = {"num_samples": num_images, "seed": 0, "precision": "32-true", "schedule": schedule}
    number = {"name": f"bits_bound_train_{num_images}", "value": value, "fingerprint": fingerprint}
    (folder / "metrics.json").write_text(json.dumps(record | {"numbers": [*record["numbers"], number]}))
    return folder


def figures_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that collects the figures of all plots."""
    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    return figures


def table(output: Path, name: str) -> list[dict[str, str]]:
    with (output / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def sweep(folder: Path) -> Path:
    for number, (sampler, steps) in enumerate([("ddim", 10), ("ddim", 50), ("ancestral", 10), ("ancestral", 50)]):
        overrides = (f"sampler={sampler}", f"sampler.num_steps={steps}", "num_samples=50")
        measured(folder / f"{number}_x", 1234.5 / steps + number, num_steps=steps, overrides=overrides)
    return folder


def test_evaluations_of_samplers_with_different_costs_show_their_numbers_of_evaluations(tmp_path: Path) -> None:
    for k, (steps, evaluations) in enumerate([(20, 40), (20, 76)]):
        folder = measured(tmp_path / f"{k}_x", 1.0, num_steps=steps, overrides=(f"sampler={('ddim', 'heun')[k]}",))
        record = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(record | {"evaluations": evaluations}))
    write_sweep_table(tmp_path)
    assert [row["evaluations"] for row in table(tmp_path, "sweep")] == ["40", "76"]
    assert "| evaluations |" in (tmp_path / "sweep.md").read_text()


def test_a_number_that_is_not_finite_is_null_in_the_summary(tmp_path: Path) -> None:
    write_summary(tmp_path, {"steps": 4, "loss": float("nan"), "minutes": 0.5, "distance": None})
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text  # it is not valid JSON
    assert json.loads(text) == {"steps": 4, "loss": None, "minutes": 0.5, "distance": None}


def test_measured_numbers_record_the_commit_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(tmp_path / "a", 1.0)
    commit = json.loads((tmp_path / "a" / "metrics.json").read_text())["commit"]
    assert commit is None or re.fullmatch(r"\S*[0-9a-f]{40}\+?", commit)
    monkeypatch.setenv("PATH", "")  # no git
    measured(tmp_path / "b", 1.0)
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["commit"] is None


def test_the_table_of_a_sweep_has_one_row_for_each_run_and_exact_numbers_in_its_file(tmp_path: Path) -> None:
    assert write_sweep_table(sweep(tmp_path))
    rows = table(tmp_path, "sweep")
    assert [(row["run"], row["sampler"], row["sampler.num_steps"]) for row in rows] == [
        ("0_x", "ddim", "10"), ("1_x", "ddim", "50"), ("2_x", "ancestral", "10"), ("3_x", "ancestral", "50"),
    ]  # fmt: skip
    assert float(rows[3]["fd_stand_in_50_train"]) == 1234.5 / 50 + 3
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    shown = "sampler | sampler.num_steps | step | fd_stand_in_50_train | duration"
    assert lines[0] == f"| {shown} |"  # no other columns whose values are all equal
    assert len(lines) == 6


def test_numbers_are_plotted_against_sampling_steps_and_training_steps(tmp_path: Path) -> None:
    write_sweep_table(sweep(tmp_path / "a"))
    plots = sorted(path.name for path in (tmp_path / "a").glob("*.png"))
    assert plots == ["against_sampler.png", "against_sampling_steps.png"]
    with Image.open(tmp_path / "a" / "against_sampling_steps.png") as picture:
        assert min(picture.size) > 400
    for number, step in enumerate((100, 200)):
        measured(tmp_path / "b" / f"{number}_x", 5.0 - number, step=step)
    write_and_print_table([tmp_path / "b"], tmp_path / "b", "runs")
    assert [path.name for path in (tmp_path / "b").glob("*.png")] == ["against_training_step.png"]


def test_results_of_one_sweep_are_comparable_without_other_permission(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = sorted(sweep(tmp_path / "a").iterdir())
    assert not write_and_print_table(folders, tmp_path / "table", "numbers")
    assert "sampler.num_steps is" in caplog.text
    (tmp_path / "a" / "multirun.yaml").write_text("{}")
    for given in ([tmp_path / "a"], folders):
        assert write_and_print_table(given, tmp_path / "table", "numbers")
    other = measured(tmp_path / "b", 1.0, num_steps=30)
    assert not write_and_print_table([tmp_path / "a", other], tmp_path / "table", "numbers")


def test_results_of_which_no_number_of_steps_differs_are_plotted_by_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    folders = [measured(tmp_path / "a" / name, value) for name, value in (("x", 3.0), ("y", 1.0))]
    assert write_and_print_table(folders, tmp_path / "table", "numbers")
    (panel,) = figures[0].axes
    names = [text.get_text() for text in panel.get_yticklabels()]
    points = {names[round(y)]: x for x, y in panel.lines[0].get_xydata().tolist()}
    assert points == {"x": 3.0, "y": 1.0}
    assert (tmp_path / "table" / "against_run.png").is_file()


def test_tables_show_durations_in_minutes_and_seconds_and_files_in_minutes(tmp_path: Path) -> None:
    folders = [measured(tmp_path / "a" / name, 1.0) for name in "xy"]
    write_summary(folders[1], {"minutes": 125.25})
    assert write_and_print_table(folders, tmp_path / "table", "numbers")
    assert [row["minutes"] for row in table(tmp_path / "table", "numbers")] == ["1.5", "125.25"]
    lines = (tmp_path / "table" / "numbers.md").read_text().splitlines()
    assert [line.split(" | ")[-1] for line in lines] == ["duration |", "--- |", "0:01:30 |", "2:05:15 |"]


def test_results_of_several_seeds_are_averaged_once_per_seed(tmp_path: Path) -> None:
    folders = []
    for number, (lr, seed) in enumerate([("0.1", 0), ("0.1", 100), ("0.1", 200), ("0.2", 0), ("0.1", 200)]):
        overrides = (f"optimizer.lr={lr}", f"seed={seed}")
        run = f"logs/train/lr-{lr}_seed-{seed}"
        folders.append(measured(tmp_path / f"{number}", float(seed), seed=seed, overrides=overrides, run=run))
    assert write_and_print_table(folders, tmp_path / "table", "numbers", allowed=["seed"])
    rows = table(tmp_path / "table", "numbers_over_seeds")
    assert [(row["optimizer.lr"], row["num_seeds"]) for row in rows] == [("0.1", "3"), ("0.2", "1")]
    assert [float(rows[0][f"{part}_fd_stand_in_50_train"]) for part in ("mean", "std")] == [100.0, 100.0]
    assert "| 0.1 | 3 | 100 ± 100 |" in (tmp_path / "table" / "numbers.md").read_text()


def test_values_that_were_computed_in_different_ways_are_not_averaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = []
    for seed, schedule in enumerate(("LinearSchedule", "CosineSchedule")):  # of runs whose folders are gone
        run, settings = f"logs/train/{seed}", {"name": schedule}
        folders.append(
            measured(tmp_path / f"{seed}", 1.0, overrides=(f"seed={seed}",), run=run, seed=seed, schedule=settings)
        )
    assert write_and_print_table(folders, tmp_path / "table", "numbers", swept=["run"], allowed=["seed"])
    assert not (tmp_path / "table" / "numbers_over_seeds.csv").exists()
    assert (
        "fd_stand_in_50_train is not averaged over seeds: schedule.name is LinearSchedule in 0 and CosineSchedule in 1."
        in caplog.text
    )


def test_losses_of_different_schedules_are_noted_as_not_comparable_and_never_averaged(tmp_path: Path) -> None:
    for number, (lr, schedule) in enumerate([("1", "linear"), ("1", "linear"), ("2", "linear"), ("2", "cosine")]):
        folder = tmp_path / f"lr-{lr}_seed-{number}"
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- lr={lr}\n- seed={number}\n")
        config = f"schedule: {{_target_: {schedule}}}\ntimes: {{schedule: {{_target_: {schedule}}}}}\nseed: {number}\n"
        (folder / "config.yaml").write_text(config)
        write_summary(folder, {"loss": 0.5 + number, "steps": 8})
    assert write_sweep_table(tmp_path)
    rows = table(tmp_path, "sweep_over_seeds")
    assert [(row["lr"], row["num_seeds"], row["mean_loss"]) for row in rows] == [("1", "2", "1.0")]
    assert (tmp_path / "sweep.md").read_text().endswith("losses with different schedule are not comparable.\n")


def test_results_of_a_sweep_are_compared_in_the_order_of_its_command(tmp_path: Path) -> None:
    for number, schedule in enumerate(("cosine", "linear")):
        measured(tmp_path / "a" / f"{number}_x", 1.0, overrides=(f"schedule={schedule}",))
    (tmp_path / "a" / "multirun.yaml").write_text("hydra: {overrides: {task: ['schedule=linear,cosine']}}")
    assert write_and_print_table([tmp_path / "a"], tmp_path / "table", "numbers")
    assert [row["run"] for row in table(tmp_path / "table", "numbers")] == ["1_x", "0_x"]


def test_a_plot_of_many_runs_has_room_below_its_panel_for_short_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    for seed in range(12):
        for steps in (10, 50):
            overrides = (f"seed={seed}", f"optimizer.lr={(seed + 1) / 1000}")
            run = f"logs/train/schedule-cosine_optimizer.lr-0.00{seed}_seed-{seed}"
            measured(tmp_path / f"{seed}_{steps}", 3.0, num_steps=steps, seed=seed, overrides=overrides, run=run)
    write_and_print_table([tmp_path], tmp_path, "runs", allowed=["seed", "sampler"])
    (figure,) = figures
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [f"seed={seed}" for seed in range(12)]
    figure.canvas.draw()
    (panel,) = figure.axes
    legend = figure.legends[0].get_window_extent()
    assert legend.y1 < panel.get_tightbbox().y0
    assert panel.get_window_extent().height > 0.6 * 3.8 * figure.dpi


def test_incomparable_numbers_are_left_out_with_the_field_that_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = measured(tmp_path / "one", 1.0, overrides=("trainer.precision=32-true",))
    other = measured(tmp_path / "other", 2.0, precision="bf16-mixed", overrides=("trainer.precision=bf16-mixed",))
    assert not write_and_print_table([one, other], tmp_path / "table", "numbers")
    assert "precision is 32-true in" in caplog.text
    assert "and bf16-mixed in" in caplog.text
    assert "allow=[precision]" in caplog.text
    assert "fd_stand_in_50_train" not in (tmp_path / "table" / "numbers.md").read_text()
    rows = table(tmp_path / "table", "numbers")
    marked = [(row["trainer.precision"], row["fd_stand_in_50_train"]) for row in rows]
    assert marked == [("32-true", "1.0"), ("bf16-mixed", "2.0")]
    assert write_and_print_table([one, other], tmp_path / "table", "numbers", allowed=["precision"])
    assert [row["fd_stand_in_50_train"] for row in table(tmp_path / "table", "numbers")] == ["1.0", "2.0"]


def commands(text: str) -> list[list[str]]:
    """Return the arguments of each command in log messages that compares values anyway."""
    return [shlex.split(found)[2:] for found in re.findall(r"compares them anyway: (.*)", text)]


def test_each_difference_is_reported_once_with_a_command_that_can_be_pasted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [
        measured(tmp_path / f"a b/{k}", 1.0, seed=99 * k, guidance_scale=k, metrics=("fd", "kd")) for k in (1, 2)
    ]
    caplog.set_level("INFO")
    assert not write_and_print_table(folders, tmp_path / "table", "numbers", allowed=["label"])
    text = (
        "fd_stand_in_50_train, kd_stand_in_50_train cannot be compared, because the measurements differ: seed is 99 in "
        "1 and 198 in 2; guidance_scale is"
    )
    assert caplog.text.count("cannot be compared") == 1
    assert text in caplog.text
    (pasted,) = commands(caplog.text)
    values: list[Any] = [override.value() for override in OverridesParser.create().parse_overrides(pasted)]
    numbers, allow = map(list, values)
    assert numbers == [str(folder) for folder in folders]
    assert write_and_print_table(folders, tmp_path / "table", "numbers", allowed=allow)
    assert [row["guidance_scale"] for row in table(tmp_path / "table", "numbers")] == ["1", "2"]


def test_the_error_of_a_sweep_has_the_status_command_of_the_sweep(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(2):
        measured(tmp_path / f"{k}_x", 1.0, label=k, overrides=(f"schedule={k}",))
    caplog.set_level("INFO")
    assert not write_sweep_table(tmp_path, ["seed"])
    assert commands(caplog.text) == [["status", str(tmp_path), "--allow", "seed", "label"]]


def test_a_nested_field_that_no_value_has_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_and_print_table([measured(tmp_path / "a", 1.0)], tmp_path, "numbers", allowed=["sampler.num_step"])
    assert "allow=sampler.num_step has no effect" in caplog.text
    assert "perhaps you mean sampler.num_steps" in caplog.text


def test_a_table_shows_the_settings_of_a_measurement_that_no_other_column_shows(tmp_path: Path) -> None:
    for k, (scale, steps) in enumerate([(1.0, 10), (2.0, 50)]):
        sampler = {"name": ("DDIM", "DPMSolver")[k], "num_steps": steps}
        measured(tmp_path / f"{k}_x", 1.0, overrides=(f"experiment={k}",), guidance_scale=scale, sampler=sampler)
    assert write_sweep_table(tmp_path)
    shown = ("experiment", "sampler", "sampler.num_steps", "guidance_scale")
    assert [tuple(row[name] for name in shown) for row in table(tmp_path, "sweep")] == [
        ("0", "ddim", "10", "1"), ("1", "dpm_solver", "50", "2"),
    ]  # fmt: skip
    assert "| guidance_scale |" in (tmp_path / "sweep.md").read_text()


def test_a_measurement_during_training_is_shown_with_its_own_sampler(tmp_path: Path) -> None:
    """The sampler of a run generates its sample grids; the metric has a cheaper one."""
    of_run = measured(
        tmp_path / "run", 1.0, num_steps=20, run=str(tmp_path / "run"), overrides=("sampler.num_steps=250",)
    )
    other = measured(
        tmp_path / "other", 1.0, num_steps=50, run=str(tmp_path / "run"), overrides=("sampler.num_steps=50",)
    )
    assert write_and_print_table([of_run, other], tmp_path, "numbers", allowed="sampler")
    assert [row["sampler.num_steps"] for row in table(tmp_path, "numbers")] == ["20", "50"]


def test_only_swept_settings_may_differ(tmp_path: Path) -> None:
    for number, name in enumerate(("LinearSchedule", "CosineSchedule")):
        measured(tmp_path / f"{number}_x", 1.0, overrides=(f"schedule={number}",), schedule={"name": name})
    assert write_sweep_table(tmp_path)
    measured(tmp_path / "2_x", 1.0, overrides=("schedule=2",), seed=1)
    assert not write_sweep_table(tmp_path)


def test_runs_of_one_evaluation_may_differ_in_their_training(tmp_path: Path) -> None:
    for number, name in enumerate(("LinearSchedule", "CosineSchedule")):
        folder = measured(tmp_path / f"{number}_{name}", 1.0, run=f"logs/train/{name}", schedule={"name": name})
        (folder / ".hydra" / "overrides.yaml").unlink()
        (folder / ".hydra").rmdir()
    assert write_and_print_table([tmp_path], tmp_path, "runs", swept=["run"])
    assert [row["trained"] for row in table(tmp_path, "runs")] == ["LinearSchedule", "CosineSchedule"]
    assert not write_and_print_table([tmp_path], tmp_path, "runs")


@pytest.mark.parametrize(("seed", "note"), [(1, "use the same noise for 49 of 50 images"), (50, None)])
def test_a_note_reports_that_sets_with_close_seeds_share_noise(
    seed: int, note: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, start in enumerate((0, seed)):
        measured(tmp_path / f"{number}_x", 1.0 + number, seed=start, overrides=(f"seed={start}",))
    assert write_sweep_table(tmp_path)
    assert note in caplog.text if note else not caplog.text


def test_a_folder_without_fingerprints_has_a_row_too(tmp_path: Path) -> None:
    write_summary(tmp_path / "0_a", {"steps": 5, "loss": 0.5})
    measured(tmp_path / "1_b", 3.0)
    (row, other) = find_rows(tmp_path)
    assert (row.values, row.fingerprints, row.training_step) == ({"steps": 5, "loss": 0.5}, {}, None)
    assert other.training_step == 100
    assert write_sweep_table(tmp_path)
    assert table(tmp_path, "sweep")[0]["loss"] == "0.5"


def test_numbers_that_are_equal_in_all_rows_are_shown(tmp_path: Path) -> None:
    for number in range(2):
        measured(tmp_path / f"{number}_x", 3.25, overrides=(f"seed={100 * number}",), seed=100 * number)
    assert write_sweep_table(tmp_path)
    assert (tmp_path / "sweep.md").read_text().splitlines()[0] == "| seed | step | fd_stand_in_50_train | duration |"


def test_a_sweep_without_results_has_no_table(tmp_path: Path) -> None:
    assert write_sweep_table(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("allowed", [[], ["sampler", "num_samples"]])
def test_the_number_of_images_of_a_bound_is_not_shown_as_the_number_of_samples(
    allowed: list[str], tmp_path: Path
) -> None:
    folders = []
    for k, (sampler, num_samples) in enumerate((("DDIM", 50), ("Heun", 50), ("DDIM", 20))):
        settings = {"name": sampler, "num_steps": 10}
        overrides = (f"num_samples={num_samples}",)
        folder = tmp_path / f"{k}"
        measured(folder, 1.0, overrides=overrides, sampler=settings, guidance_scale=1.0, num_samples=num_samples)
        folders.append(with_bound(folder))
    assert write_and_print_table(folders, tmp_path / "table", "numbers", allowed=allowed) == bool(allowed)
    rows = table(tmp_path / "table", "numbers")
    assert [row["num_samples"] for row in rows] == ["50", "50", "20"]
    assert [row["sampler"] for row in rows] == ["ddim", "heun", "ddim"]
    assert "guidance_scale" not in rows[0]  # equal in all evaluations


def test_settings_that_only_generated_images_have_are_not_a_difference_to_an_evaluation_without_images(
    tmp_path: Path,
) -> None:
    folders = [with_bound(measured(tmp_path / f"{k}", 1.0, guidance_scale=1.0, label=None)) for k in range(2)]
    record = json.loads((folders[1] / "metrics.json").read_text())
    (folders[1] / "metrics.json").write_text(json.dumps(record | {"numbers": record["numbers"][1:]}))
    assert write_and_print_table(folders, tmp_path / "table", "numbers")
    assert not {"guidance_scale", "label", "sampler", "num_samples"} & set(table(tmp_path / "table", "numbers")[0])


def test_runs_are_plotted_in_the_order_of_the_table_with_the_settings_in_which_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    figures = figures_of(monkeypatch)
    folders = []
    for k, sampler in enumerate(("Heun", "DDIM", "Ancestral")):
        metrics = ("fd", "kd") if k else ("kd",)
        folder = tmp_path / f"2026-11-2{9 - k}"
        measured(folder, 1.0 + k, sampler={"name": sampler, "num_steps": 10}, seed=0, metrics=metrics)
        write_summary(folder, {"minutes": 1.5})
        folders.append(with_bound(folder))
    assert write_and_print_table(folders, tmp_path / "table", "numbers", allowed=["sampler"])
    panels = {panel.get_title().split()[0]: panel for panel in figures[0].axes}
    assert set(panels) == {"kd_stand_in_50_train", "fd_stand_in_50_train"}
    names = [text.get_text() for text in panels["kd_stand_in_50_train"].get_yticklabels()]
    assert names == ["sampler=heun", "sampler=ddim", "sampler=ancestral"]
    assert panels["fd_stand_in_50_train"].lines[0].get_xydata().tolist() == [[2.0, 1.0], [3.0, 2.0]]
    assert "not plotted, because the table has no different values: bits_bound_train_5." in caplog.text


def test_samplers_with_different_costs_per_step_are_plotted_against_evaluations_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = figures_of(monkeypatch)
    for k, (name, steps, evaluations) in enumerate(
        [("DDIM", 10, 10), ("DDIM", 20, 20), ("Heun", 10, 19), ("Heun", 20, 39)]
    ):
        overrides = (f"sampler={name.lower()}", f"sampler.num_steps={steps}")
        settings = {"name": name, "num_steps": steps}
        folder = with_bound(measured(tmp_path / f"{k}_x", 9.0 - k, overrides=overrides, sampler=settings))
        record = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(record | {"evaluations": evaluations}))
    assert write_sweep_table(tmp_path)
    assert (tmp_path / "against_evaluations.png").is_file()
    assert not (tmp_path / "against_sampling_steps.png").exists()
    (panel,) = figures[0].axes  # none for the bound, which needs no sampler
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    assert lines == {
        "sampler=ddim": [[10.0, 9.0], [20.0, 8.0]],
        "sampler=heun": [[19.0, 7.0], [39.0, 6.0]],
    }


def with_evaluations(folder: Path, evaluations: int) -> Path:
    record = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(record | {"evaluations": evaluations}))
    return folder


def test_samplers_with_one_number_of_steps_each_are_plotted_as_points_with_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, folders = figures_of(monkeypatch), []
    for name, steps, evaluations in (("DDIM", 25, 25), ("DPMSolver", 8, 8), ("Heun", 6, 11)):
        settings = {"name": name, "num_steps": steps}
        folders.append(with_evaluations(measured(tmp_path / name, float(steps), sampler=settings), evaluations))
    assert write_and_print_table(folders, tmp_path / "table", "numbers", allowed=["sampler"])
    assert [path.name for path in (tmp_path / "table").glob("*.png")] == ["against_evaluations.png"]
    (panel,) = figures[0].axes
    assert {line.get_label(): (line.get_xydata().tolist(), line.get_marker()) for line in panel.lines} == {
        "sampler=ddim (25 steps)": ([[25.0, 25.0]], "o"),
        "sampler=dpm_solver (8 steps)": ([[8.0, 8.0]], "o"),
        "sampler=heun (6 steps)": ([[11.0, 6.0]], "o"),
    }


def test_a_setting_of_another_metric_does_not_split_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, folders = figures_of(monkeypatch), []
    for k, steps in enumerate((10, 20, 50)):
        overrides = (f"metrics.bound.num_images={k + 1}", f"sampler.num_steps={steps}")
        metric = {"name": "FrechetDistance"}
        folders.append(measured(tmp_path / f"{k}", 9.0 - k, num_steps=steps, overrides=overrides, metric=metric))
    assert write_and_print_table(folders, tmp_path / "table", "numbers", allowed=["sampler"])
    (panel,) = figures[0].axes
    (line,) = panel.lines
    assert line.get_xydata().tolist() == [[10.0, 9.0], [20.0, 8.0], [50.0, 7.0]]


def test_the_duration_is_the_last_column_and_standard_deviations_over_subsets_have_columns(tmp_path: Path) -> None:
    one = measured(tmp_path / "one", 1.0, metrics=("fd",))
    other = measured(tmp_path / "other", 2.0, metrics=("kd", "kd_std"))
    assert write_and_print_table([one, other], tmp_path / "table", "numbers")
    header = (tmp_path / "table" / "numbers.md").read_text().splitlines()[0]
    columns = "run | fd_stand_in_50_train | kd_stand_in_50_train | kd_std_stand_in_50_train"
    assert header.startswith(f"| {columns} |")
    write_summary(other, {"minutes": 3.0})
    assert write_and_print_table([one, other], tmp_path / "table", "numbers")
    assert (tmp_path / "table" / "numbers.md").read_text().splitlines()[0] == f"| {columns} | duration |"


def test_a_line_has_the_same_color_in_all_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, folders = figures_of(monkeypatch), []
    for k, (name, steps) in enumerate((("DDIM", 25), ("DPMSolver", 8), ("Heun", 6))):
        metrics, settings = ("fd", "kd") if k else ("fd",), {"name": name, "num_steps": steps}
        folder = measured(tmp_path / name, float(steps), sampler=settings, metrics=metrics)
        folders.append(with_evaluations(folder, steps * (1 + (name == "Heun"))))
    assert write_and_print_table(folders, tmp_path / "table", "numbers", allowed=["sampler"])
    fd, kd = ({line.get_label(): line.get_color() for line in panel.lines} for panel in figures[0].axes)
    assert len(set(fd.values())) == len(fd) == 3
    assert kd.items() < fd.items()

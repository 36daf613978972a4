"""Tables, reports and messages about runs and classes with names that a terminal or a spreadsheet would interpret."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lab.data.classes import as_label, numbering
from diffusion_lab.data.duplicates import NearDuplicates
from diffusion_lab.data.images import Images
from diffusion_lab.data.inspection import inspect
from diffusion_lab.data.inspection_report import Split, as_dict, list_pairs, print_report, write_report
from diffusion_lab.data.inspection_sheets import contact_sheet, duplicate_sheet
from diffusion_lab.errors import UserError
from diffusion_lab.reporting.csv_files import read_csv
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.metrics_log import read_log
from diffusion_lab.runs.results import keep_earlier, print_line, print_numbers, write_metrics, write_summary
from diffusion_lab.runs.tables.comparable import write_and_print_table
from diffusion_lab.runs.tables.table import Row, read_json
from diffusion_lab.sweeps.table import write_sweep_table
from diffusion_lab.training.loggers import MetricsFile
from support.hostile_names import INVISIBLE, SHOWN, fuzzed_folder_name, fuzzed_name, record_output

FEW = [pytest.param(range(8), id="8"), pytest.param(range(8, 300), id="292", marks=pytest.mark.full)]
KNOWN = [name for name in SHOWN if name != "two\nlines"]  # a table shows each of these in one line


def evaluated(folder: Path, value: float, text: str) -> Path:
    """Write the files of an evaluation, with `text` in each field that holds a text, and return its folder."""
    fingerprint = {"num_samples": 9, "sampler": {"name": text, "num_steps": 4}, "seed": 0, "label": text}
    number = {"name": "fd_a_9_train", "value": value, "fingerprint": fingerprint}
    run = str(folder.parent.parent / text)
    record = {"run": run, "checkpoint": f"{text}.ckpt", "step": 8, "seconds": {text: 1.0}, "peak_memory_gb": 1.0}
    write_metrics(folder, record | {"numbers": [number]})
    write_summary(folder, {"fd_a_9_train": value, "minutes": 1.5})
    (folder / ".hydra").mkdir()
    OmegaConf.save([f"sampler={text}", "num_samples=9"], folder / ".hydra" / "overrides.yaml")
    return folder


DAMAGED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "text as duration": ({"minutes": "x"}, {}, "minutes must be a number, got str"),
    "endless duration": ({"minutes": 1e308}, {}, r"minutes must be in \[0, 1000000000\), got 1e\+308"),
    "duration without a value": ({"minutes": float("nan")}, {}, "minutes must be in .*, got nan"),
    "nested value": ({"loss": {"a": 1}}, {}, "loss must be a number, got dict"),
    "text as step": ({}, {"step": "\x1b[31m"}, "step must be a whole number"),
    "huge step": ({}, {"step": 10**400}, "step must be a whole number"),
    "list of evaluations": ({}, {"evaluations": [1]}, r"evaluations must be a whole number, got '\[1\]'"),
    "text as sampling steps": ({}, {"sampler": {"name": "a", "num_steps": "4"}}, "num_steps must be a whole number"),
    "text as seed": ({}, {"seed": "y"}, "seed must be a whole number, got 'y'"),
    "null byte in a path": ({}, {"run": "\0"}, "run and job must be paths"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_results_with_which_a_table_cannot_calculate_are_refused(name: str, tmp_path: Path) -> None:
    summary, record, reason = DAMAGED[name]
    folder = evaluated(tmp_path / "a", 1.0, "b")
    assert Row.read(folder, tmp_path).values["minutes"] == 1.5
    (folder / "summary.json").write_text(json.dumps({"minutes": 1.5} | summary))
    content = json.loads((folder / "metrics.json").read_text())
    content["numbers"][0]["fingerprint"] |= {key: record[key] for key in ("seed", "sampler") if key in record}
    (folder / "metrics.json").write_text(json.dumps(content | record))
    with pytest.raises(UserError, match=rf"a cannot be read as this package writes it \(ValueError: {reason}"):
        Row.read(folder, tmp_path)


def test_folders_that_cannot_be_read_are_left_out_of_a_table_unless_all_are_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [evaluated(tmp_path / name, 1.0, "b") for name in "ab"]
    (folders[0] / "metrics.json").write_text("{")
    assert write_and_print_table(folders, tmp_path / "of_all", "numbers")
    with (tmp_path / "of_all" / "numbers.csv").open() as file:
        assert [row["folder"] for row in csv.DictReader(file)] == [str(folders[1])]
    (note,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert note.startswith(f"{folders[0]}/metrics.json cannot be read as this package writes it (JSONDecodeError: ")
    assert note.endswith("); the results of this run are left out.")
    with pytest.raises(UserError, match=r"a/metrics\.json cannot be read as this package writes it"):
        write_and_print_table(folders[:1], tmp_path / "of_one", "numbers")


def test_the_step_in_a_file_of_results_does_not_choose_its_new_place(tmp_path: Path) -> None:
    (tmp_path / "run" / "metrics_step_").mkdir(parents=True)
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"step": "/../../stolen"}))
    with pytest.raises(UserError, match=r"metrics\.json must have a whole number as `step`, got '/\.\./\.\./stolen'"):
        keep_earlier(tmp_path / "run", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def fill_sweep(folder: Path, names: list[str]) -> list[Path]:
    """Write an evaluation, and a run that failed, for each name; return the folders of the evaluations."""
    folders = [evaluated(folder / name, 1.0 + k / 8, name) for k, name in enumerate(names)]
    for name in names:
        run_status.mark_running(folder / f"{name}.failed")
        run_status.mark_failed(folder / f"{name}.failed", f"reason {name}")
    return folders


@pytest.mark.parametrize("seeds", FEW)
def test_a_table_of_runs_with_any_names_is_printed_and_written(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = record_output(monkeypatch)
    folders = fill_sweep(tmp_path / "sweep", [*SHOWN, *map(fuzzed_folder_name, seeds)])
    write_and_print_table(folders, tmp_path / "table", "numbers", allowed=["sampler", "label"])
    rows = read_csv(tmp_path / "table" / "numbers.csv")
    assert [row["folder"] for row in rows] == list(map(str, folders))
    assert {row["run"] for row in rows} >= set(SHOWN)
    assert [float(row["fd_a_9_train"]) for row in rows] == [1.0 + k / 8 for k in range(len(rows))]
    assert not INVISIBLE.search(output.getvalue())
    for name in KNOWN:
        assert f" {SHOWN[name]} " in output.getvalue()
    text = (tmp_path / "table" / "numbers.md").read_text()
    assert not INVISIBLE.search(text)
    lines = text.splitlines()
    assert len(lines) == 2 + len(rows)
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}


@pytest.mark.parametrize("seeds", FEW)
def test_the_status_of_a_sweep_with_any_names_and_reasons_is_printed_and_written(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, names = record_output(monkeypatch), [*SHOWN, *map(fuzzed_folder_name, seeds)]
    fill_sweep(tmp_path, names)
    write_sweep_table(tmp_path, allowed=["sampler", "label"])
    assert not INVISIBLE.search(output.getvalue())
    lines = output.getvalue().splitlines()
    for name in SHOWN:
        assert f"{SHOWN[name]}.failed: failed: reason {terminal_text(' '.join(name.split()))}" in lines
    states = {row["run"]: row["state"] for row in read_csv(tmp_path / "sweep.csv")}
    assert {states[f"{name}.failed"] for name in names} == {"failed"}
    reasons = {row["run"]: row["reason"] for row in read_csv(tmp_path / "sweep.csv")}
    assert reasons["=1+1.failed"] == "reason =1+1"


@pytest.mark.parametrize("seeds", FEW)
def test_one_evaluation_of_a_run_with_any_name_is_printed(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = record_output(monkeypatch)
    for number, name in enumerate([*SHOWN, "r[/x]", *map(fuzzed_name, seeds)]):
        record = read_json(evaluated(tmp_path / str(number), 1.0, name) / "metrics.json")
        output.seek(output.truncate(0))
        print_numbers(record)
        print_line(record)
        assert not INVISIBLE.search(output.getvalue())
        first, *_, last = output.getvalue().splitlines()
        assert first == terminal_text(f"{record['run']}, {name}.ckpt, step 8")
        assert last == terminal_text(f"{Path(record['run']).name}, {name}.ckpt, step 8: fd_a_9_train 1")
        assert len(name) > 20 or terminal_text(f"seconds in {name}") in output.getvalue()


@pytest.mark.parametrize("seeds", FEW)
def test_a_set_with_any_class_names_is_inspected(seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = record_output(monkeypatch)
    names = tuple(dict.fromkeys([*SHOWN, *map(fuzzed_name, seeds), "l" * 100_000]))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2 * len(names), 1, 8, 8), dtype=torch.uint8, generator=generator)
    pixels[1] = pixels[0]
    split, search = Split("train", Images(pixels, torch.arange(len(pixels)) % len(names), names)), NearDuplicates()
    inspected = inspect(split.images, None, search)
    pairs, content = list_pairs(inspected, split, None), as_dict(inspected, split, None, search)
    write_report(content, pairs, tmp_path, {})
    assert set(json.loads((tmp_path / "report.json").read_bytes())["class_counts"]) == set(names)
    rows = read_csv(tmp_path / "duplicates.csv")
    assert [(row["class"], row["other_class"]) for row in rows[:1]] == [names[:2]]
    print_report(content)
    assert not INVISIBLE.search(output.getvalue())
    assert contact_sheet(split.images, num_rows=1, seed=0).shape[0] < 1000
    assert duplicate_sheet(pairs, 4).dtype == np.uint8


def test_the_classes_of_a_message_are_shown_literally() -> None:
    names = ("r[/x]", "r\x1b[31mq", "two\nlines", "l" * 1000)
    assert numbering(names) == f"0 r[/x], 1 r\\x1b[31mq, 2 two\\nlines, 3 {'l' * 52}...{'l' * 25}"


@pytest.mark.parametrize("name", ["null", "1", "[a,b]", "true", "-x", "=1+1", "r[/x]", "a,b", 'quo"te'])
def test_a_class_is_selected_by_its_quoted_name(name: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from diffusion_lab.config.command_line import as_hydra_arguments
    from diffusion_lab.config.overrides import quote

    arguments = as_hydra_arguments("sample", [f"label={quote(name)}"])
    label: Any = OverridesParser.create().parse_overrides(arguments)[0].value()
    assert as_label(label, 3, ("0", "other", name)) == 2


def test_metrics_with_the_name_of_a_formula_are_logged_and_read_under_their_names(tmp_path: Path) -> None:
    logged = [{"=1+1": -0.5, "loss": 1.0}, {"=1+1": 0.25, "-x": 2.0, "loss": -1.0}]
    logger = MetricsFile(str(tmp_path))
    for step, metrics in enumerate(logged, 1):
        logger.log_metrics(metrics, step=step)
    logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,'-x,'=1+1,loss"
    assert read_log(tmp_path) == [{"step": float(step), **metrics} for step, metrics in enumerate(logged, 1)]
    resumed = MetricsFile(str(tmp_path))
    resumed.continue_after(2)
    resumed.log_metrics({"-x": 3.0}, step=3)
    assert read_log(tmp_path)[1:] == [{"step": 2.0, **logged[1]}, {"step": 3.0, "-x": 3.0}]

"""Loggers of a run that is stopped and resumed."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from diffusion_lab.training.loggers import MetricsFile
from diffusion_lab.training.tensorboard_events import TensorBoardEvents
from support.full_disk import limited_file_size


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


LOG_TO_WANDB = """
import os, signal, sys
import numpy as np
from diffusion_lab.training.loggers import MetricsFile, WandbRun
folder, first, last, resume_from, ending = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
loggers = [MetricsFile(folder), WandbRun(folder, project="p", offline=True)]
for logger in loggers:
    logger.continue_after(resume_from)
    logger.experiment
for step in range(first, last + 1):
    for logger in loggers:
        logger.log_metrics({"loss": 1.0 / step, "epoch": step // 10}, step)
        logger.save()
    if step % 20 == 0:
        loggers[1].log_image("samples", [np.full((8, 8, 3), step, np.uint8)], step=step)
        loggers[1].log_table("numbers", columns=["step", "value"], data=[[step, 0.5]], step=step)
        for logger in loggers:
            logger.log_metrics({"distance": float(step)}, step)
if ending == "kill":
    os.killpg(0, signal.SIGKILL)
for logger in loggers:
    logger.finalize("success")
"""


def log_to_wandb(folder: Path, first: int, last: int, *, resume_from: int = 0, ending: str = "finish") -> None:
    """Log steps in a process that then finishes, or is killed with all processes that it has started."""
    arguments = (str(folder), str(first), str(last), str(resume_from), ending)
    command = [sys.executable, "-W", "ignore", "-c", LOG_TO_WANDB, *arguments]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if ending == "kill" else 0), done.stderr


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that all offline files of a run contain, in the order of the files."""
    program, rows = Path(sys.executable).with_name("wandb"), []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        done = subprocess.run([program, "leet", "inspect", "--json", str(path)], capture_output=True, text=True)
        records = map(json.loads, done.stdout.splitlines())
        rows += [record["history"]["item"] for record in records if record["type"] == "history"]
    return rows


@pytest.mark.full
def test_what_weights_and_biases_had_not_written_when_a_process_died_is_written_once_on_resume(tmp_path: Path) -> None:
    log_to_wandb(tmp_path, 1, 89, ending="kill")
    written = [row["trainer/global_step"] for row in wandb_history(tmp_path)]
    assert written == list(range(1, len(written) + 1))
    assert len(written) < 80
    (tmp_path / "metrics.csv").write_bytes((tmp_path / "metrics.csv").read_bytes()[:-5])  # of the last line, too
    log_to_wandb(tmp_path, 81, 84, resume_from=80)
    log_to_wandb(tmp_path, 81, 90, resume_from=80)  # 81 to 84 are in the second file

    rows = wandb_history(tmp_path)
    assert [row["trainer/global_step"] for row in rows] == list(range(1, 91))
    assert [row["loss"] for row in rows] == [1.0 / step for step in range(1, 91)]
    assert [(row["trainer/global_step"], row["distance"]) for row in rows if "distance" in row] == [
        (step, step) for step in (20, 40, 60, 80)
    ]
    assert [row["trainer/global_step"] for row in rows if "samples.count" in row] == [20, 40, 60, 80]
    assert [row["trainer/global_step"] for row in rows if "numbers.nrows" in row] == [20, 40, 60, 80]
    assert len({path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}) == 1


def test_a_new_column_leaves_the_rows_on_a_full_disk_complete(tmp_path: Path) -> None:
    log(tmp_path, *({"loss": 0.5, "step": k} for k in range(1, 201)))
    before = lines(tmp_path)
    logger = MetricsFile(str(tmp_path))
    logger.continue_after(200)
    _ = logger.experiment
    with limited_file_size(1000), pytest.raises(OSError, match="File too large"):
        logger.log_metrics({"distance": 1.0}, step=201)
    assert lines(tmp_path) == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_row_that_was_cut_in_its_last_number_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n2,0.5\n4,0.12")
    log(tmp_path, {"loss": 0.25, "step": 6}, after=4)
    assert lines(tmp_path) == ["step,loss", "2,0.5", "6,0.25"]


def test_a_start_that_cannot_write_keeps_the_rows_of_the_run(tmp_path: Path) -> None:
    log(tmp_path, *({"loss": 0.5, "step": k} for k in range(1, 201)))
    before = lines(tmp_path)
    logger = MetricsFile(str(tmp_path))
    logger.continue_after(150)
    with limited_file_size(100), pytest.raises(OSError, match="File too large"):
        _ = logger.experiment
    assert lines(tmp_path) == before


def tensorboard_steps(folder: Path) -> list[int]:
    """Return the step of each loss in all event files, in the order in which TensorBoard reads them."""
    files = sorted(map(str, (folder / "tensorboard").glob("events.*")))
    events = [event for file in files for event in LegacyEventFileLoader(file).Load()]
    return [event.step for event in events for value in event.summary.value if value.tag == "loss"]


def test_tensorboard_has_each_step_once_after_a_run_was_resumed(tmp_path: Path) -> None:
    for first, last in ((1, 8), (5, 9), (7, 12)):
        logger = TensorBoardEvents(str(tmp_path))
        logger.continue_after(first - 1)
        for step in range(first, last + 1):
            logger.log_metrics({"loss": 1.0 / step}, step)
        logger.sync()
        with max((tmp_path / "tensorboard").glob("events.*"), key=lambda path: path.stat().st_ctime).open("ab") as file:
            file.write(b"\x18\0\0")  # the beginning of an event that a killed process did not complete
    assert tensorboard_steps(tmp_path) == list(range(1, 13))


def test_a_new_run_removes_the_tensorboard_events_of_its_folder(tmp_path: Path) -> None:
    for last in (4, 2):
        logger = TensorBoardEvents(str(tmp_path))
        logger.continue_after(0)
        for step in range(1, last + 1):
            logger.log_metrics({"loss": 0.5}, step)
        logger.experiment.close()
    assert tensorboard_steps(tmp_path) == [1, 2]


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

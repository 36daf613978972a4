"""The end of the output of jobs that ended without a status."""

from pathlib import Path

import pytest

from diffusion_lab.runs.job_output import job_output, last_lines

NO_IMAGE = "FATAL:   could not open image image.sif: no such file or directory"
EXITED = "srun: error: n1: task 0: Exited with exit code 255"
REQUEUED = "slurmstepd-n1: error: *** STEP 17.0 ON n1 CANCELLED AT 2026-11-29T18:00:48 DUE TO JOB REQUEUE ***"
KILLED = "slurmstepd-n1: error: Detected 1 oom_kill event in StepId=17.0. Some of the step tasks have been OOM Killed."


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / ".submitit" / "17_3").mkdir(parents=True)
    return tmp_path / "seed-1"


def write(run_folder: Path, *lines: str, suffix: str = "err") -> None:
    (run_folder.parent / ".submitit" / "17_3" / f"17_3_0_log.{suffix}").write_text("\n".join([*lines, "", ""]))


@pytest.mark.parametrize(
    ("lines", "has_started", "expected"),
    [
        ([NO_IMAGE, EXITED], False, "FATAL: could not open image image.sif: no such file or directory"),
        (["a", "b", "c", "d", EXITED], False, "b / c / d"),
        (["note: of the first start", REQUEUED, "no module", EXITED], False, "no module"),
        (["step 3/12  loss 0.9", KILLED, EXITED], True, f"{KILLED} / {EXITED}"),
        ([EXITED, "step 3/12  loss 0.9"], True, ""),  # Slurm has said nothing about the end
        ([REQUEUED, EXITED], False, ""),
    ],
)
def test_the_last_lines_of_a_job_explain_its_end(
    lines: list[str], has_started: bool, expected: str, run_folder: Path
) -> None:
    write(run_folder, *lines)
    shown = job_output(run_folder, "17_3", has_started=has_started)
    assert shown == (f"{expected} (.submitit/17_3/17_3_0_log.err)" if expected else "")


def test_an_error_on_the_standard_output_is_shown_if_there_is_no_other(run_folder: Path) -> None:
    write(run_folder, EXITED)
    write(run_folder, "no such image", suffix="out")
    assert job_output(run_folder, "17_3", has_started=False) == "no such image (.submitit/17_3/17_3_0_log.out)"


def test_a_job_without_output_files_has_no_last_lines(tmp_path: Path, run_folder: Path) -> None:
    assert job_output(run_folder, "18", has_started=False) == ""
    assert job_output(Path("/seed-1"), "17_3", has_started=False) == ""
    assert last_lines(tmp_path / "output.log") == ""


def test_a_long_output_is_shortened(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_bytes(b"x" * 10_000 + b"\xff\n")
    assert last_lines(tmp_path / "output.log") == "x" * 299 + "\ufffd"

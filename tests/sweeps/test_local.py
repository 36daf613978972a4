"""Runs of a sweep that are processes on this machine; tests/cluster runs complete sweeps."""

import subprocess
from pathlib import Path

import pytest

from diffusion_lab.runs import status as run_status
from diffusion_lab.sweeps import local
from diffusion_lab.sweeps.plan import PlannedRun, mark_queued


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("a\nb\nc\nImportError: no module", "exit status 3; b / c / ImportError: no module (output.log)"),
        ("", "exit status 3 (output.log)"),
    ],
)
def test_the_reason_of_a_process_that_ended_before_its_run_started_is_its_output(
    printed: str, reason: str, tmp_path: Path
) -> None:
    run = PlannedRun(("seed=1",), tmp_path / "seed-1", None, is_done=False)
    mark_queued([run])
    with (run.folder / "output.log").open("wb") as output:
        process = subprocess.Popen(["sh", "-c", 'printf "$0" && exit 3', printed], stdout=output)
    process.wait()
    local._mark_failed_if_killed(local._Child(run, process))
    status = run_status.read(run.folder)
    assert status is not None
    assert (status.state, status.reason) == ("failed", f"its process ended with {reason}")

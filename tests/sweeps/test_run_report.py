"""The lines that a sweep of processes on this machine prints."""

import json
import re
from pathlib import Path

import pytest

from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.results import write_metrics, write_summary
from diffusion_lab.sweeps.plan import PlannedRun, mark_queued
from diffusion_lab.sweeps.run_report import RunReport


def test_each_run_has_a_line_at_its_start_and_end_and_one_progress_line_in_30_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("diffusion_lab.sweeps.run_report.time.monotonic", lambda: now[0])
    runs = [PlannedRun((f"seed={k}",), tmp_path / f"seed-{k}", None, is_done=False) for k in (1, 2)]
    mark_queued(runs)
    report = RunReport(runs)

    def lines(seconds: float = 0.0) -> list[str]:
        now[0] += seconds
        report.update()
        return [re.sub(r"^\[\d\d:\d\d:\d\d\] ", "", line) for line in capsys.readouterr().err.splitlines()]

    assert lines() == ["2 queued"]
    folder = runs[0].folder
    run_status.mark_running(folder)
    (folder / "config.yaml").write_text("trainer: {max_steps: 500}")
    assert lines() == ["seed-1: started", "1 queued, 1 running"]
    (folder / "output.log").write_text("step 120/500  loss 0.5\n")
    assert lines(29.0) == []
    assert lines(1.0) == ["seed-1: step 120/500"]
    assert lines(30.0) == []  # no new step
    (folder / "output.log").write_text("step 240/500  loss 0.5\n")
    assert [lines(10.0), lines(10.0), lines(10.0), lines(1.0)] == [[], [], ["seed-1: step 240/500"], []]
    number = {"name": "fid_inception_2k_train", "value": 12.345678, "fingerprint": {}}
    write_metrics(folder, {"run": str(folder), "numbers": [number]})
    write_summary(folder, {"steps": 500, "loss": 0.25})
    run_status.mark_finished(folder, 12.3)
    run_status.mark_running(runs[1].folder)
    assert lines() == [
        "seed-1: finished, 500 steps, fid_inception_2k_train 12.35", "seed-2: started", "1 finished, 1 running"
    ]  # fmt: skip
    run_status.mark_failed(runs[1].folder, "RuntimeError: no")
    assert lines() == ["seed-2: failed: RuntimeError: no", "1 failed, 1 finished"]
    assert json.loads((runs[1].folder / "status.json").read_text())["state"] == "failed"

"""The status file of a run."""

import json
import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from filelock import FileLock

from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.slurm_job import SlurmQueue
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.status import Attempt, FolderLockedError, Status


class FakeQueue(SlurmQueue):
    """A Slurm queue with given states of jobs."""

    def __init__(self, states: dict[str, str] | None, accounts: dict[str, str] | None = None) -> None:
        self._states, self._queried, self.accounts = states, True, accounts or {}


def test_a_run_is_queued_then_runs_then_is_finished_with_its_number(tmp_path: Path) -> None:
    run_status.mark_queued(tmp_path)
    assert run_status.read(tmp_path).state == "queued"  # type: ignore[union-attr]
    run_status.mark_running(tmp_path)
    assert run_status.read(tmp_path).state == "running"  # type: ignore[union-attr]
    run_status.mark_finished(tmp_path, 2.5)
    status = run_status.read(tmp_path)
    assert status is not None
    assert (status.state, status.result, status.reason) == ("finished", 2.5, None)
    (start,) = status.starts
    assert (start.pid, start.host) == (os.getpid(), socket.gethostname())
    assert start.ended is not None


def test_times_are_written_with_a_time_zone_and_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    run_status.mark_running(tmp_path)
    status, content = run_status.read(tmp_path), json.loads((tmp_path / "status.json").read_text())
    assert status is not None
    began = datetime.fromisoformat(content["starts"][0]["began"])
    assert began.tzinfo is not None
    assert began.timestamp() == pytest.approx(status.starts[0].began, abs=1e-5)
    assert content["starts"][0]["ended"] is None
    content |= {"since": 1.5e9, "starts": [content["starts"][0] | {"began": 1.4e9}]}  # seconds since 1970
    (tmp_path / "status.json").write_text(json.dumps(content))
    earlier = run_status.read(tmp_path)
    assert earlier is not None
    assert (earlier.since, earlier.starts[0].began) == (1.5e9, 1.4e9)


@pytest.mark.parametrize(
    "damage",
    [{"since": 1e300}, {"since": float("inf")}, {"since": 10**400}, {"since": "0001-01-01T00:00:00"},
     {"result": 10**400}, {"starts": []}],
    ids=str,
)  # fmt: skip
def test_a_status_that_no_run_writes_is_no_status(damage: dict[str, object], tmp_path: Path) -> None:
    run_status.mark_running(tmp_path)
    content = json.loads((tmp_path / "status.json").read_text())
    assert run_status.read(tmp_path) is not None
    (tmp_path / "status.json").write_text(json.dumps(content | damage))
    assert run_status.read(tmp_path) is None
    if "since" in damage:
        starts = [content["starts"][0] | {"began": damage["since"]}]
        (tmp_path / "status.json").write_text(json.dumps(content | {"starts": starts}))
        assert run_status.read(tmp_path) is None
    with run_status.locked(tmp_path):
        run_status.mark_running(tmp_path)


def test_a_result_that_is_not_finite_is_none(tmp_path: Path) -> None:
    run_status.mark_running(tmp_path)
    run_status.mark_finished(tmp_path, float("nan"))
    assert json.loads((tmp_path / "status.json").read_text())["result"] is None


def test_the_first_reason_of_a_failure_stays_until_the_next_start(tmp_path: Path) -> None:
    run_status.mark_running(tmp_path)
    run_status.mark_failed(tmp_path, "rank 1: RuntimeError: first")
    run_status.mark_failed(tmp_path, "RuntimeError: connection closed by peer")
    assert run_status.read(tmp_path).reason == "rank 1: RuntimeError: first"  # type: ignore[union-attr]
    run_status.mark_running(tmp_path)
    run_status.mark_failed(tmp_path, "second")
    status = run_status.read(tmp_path)
    assert status is not None
    assert (status.reason, len(status.starts)) == ("second", 2)


def test_a_run_whose_process_was_killed_is_marked_as_failed(tmp_path: Path) -> None:
    code = (
        f"from diffusion_lab.runs import status; from pathlib import Path; status.mark_running(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True)
    assert done.returncode == 0
    assert run_status.read(tmp_path).state == "running"  # type: ignore[union-attr]
    status = run_status.reconcile(tmp_path)
    assert status is not None
    assert status.state == "failed"
    assert status.reason is not None
    assert status.reason.endswith("ended without a status")
    run_status.mark_running(tmp_path)  # by this process, which is alive
    assert run_status.reconcile(tmp_path).state == "running"  # type: ignore[union-attr]


def queue_with_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_status.mark_queued(folder)
    run_status.write_job_id(folder, "17_3")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")


def test_the_state_of_a_job_comes_from_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue_with_job(tmp_path, monkeypatch)
    assert run_status.job_id(tmp_path) == "17_3"
    assert run_status.reconcile(tmp_path, FakeQueue({"17_3": "PENDING"})).state == "queued"  # type: ignore[union-attr]
    run_status.mark_running(tmp_path)
    assert run_status.reconcile(tmp_path, FakeQueue({"17_3": "RUNNING"})).state == "running"  # type: ignore[union-attr]
    assert run_status.reconcile(tmp_path, FakeQueue(None)).state == "running"  # type: ignore[union-attr]
    monkeypatch.setattr(slurm_job, "_query", lambda *command: {"17_3": "OUT_OF_MEMORY+"})
    status = run_status.reconcile(tmp_path, FakeQueue({"17_4": "RUNNING"}))
    assert status is not None
    assert (status.state, status.reason) == ("failed", "job 17_3 ended without a status: OUT_OF_MEMORY")


@pytest.mark.parametrize(
    ("accounts", "state", "reason"),
    [
        ({"17_0": "COMPLETED", "17_[2-9%4]": "CANCELLED by 0"}, "not started", "job 17_3 was canceled"),
        ({"17_3": "CANCELLED by 1000"}, "not started", "job 17_3 was canceled"),
        ({"17_3": "FAILED", "17_[4-9%4]": "CANCELLED by 0"}, "failed", "job 17_3 ended without a status: FAILED"),
        ({"17_[2-9%4]": "PENDING"}, "queued", None),
    ],
)
def test_a_queued_run_is_not_started_if_its_job_was_canceled(
    accounts: dict[str, str], state: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_with_job(tmp_path, monkeypatch)
    monkeypatch.setattr(slurm_job, "_query", lambda *command: accounts)
    status = run_status.reconcile(tmp_path, FakeQueue({}))
    assert status is not None
    assert (status.state, status.reason) == (state, reason)
    assert status.is_over == (state != "queued")


def test_a_run_whose_job_is_canceled_after_its_start_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue_with_job(tmp_path, monkeypatch)
    run_status.mark_running(tmp_path)
    monkeypatch.setattr(slurm_job, "_query", lambda *command: {"17_3": "CANCELLED by 0"})
    status = run_status.reconcile(tmp_path, FakeQueue({}))
    assert status is not None
    assert (status.state, status.reason) == ("failed", "job 17_3 ended without a status: CANCELLED by 0")


def test_a_queued_run_whose_launcher_was_killed_is_not_started_and_keeps_its_earlier_attempts(tmp_path: Path) -> None:
    run_status.mark_running(tmp_path)
    run_status.mark_failed(tmp_path, "the first attempt")
    code = (
        f"from diffusion_lab.runs import status; from pathlib import Path; status.mark_queued(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    before = run_status.read(tmp_path)
    status = run_status.reconcile(tmp_path)
    assert before is not None
    assert status is not None
    assert (before.state, status.state) == ("queued", "not started")
    assert status.reason == "the command that would have started it has ended"
    assert status.starts == before.starts
    assert len(status.starts) == 1


def test_a_job_that_sacct_lists_before_squeue_remains_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue_with_job(tmp_path, monkeypatch)
    monkeypatch.setattr(slurm_job, "_query", lambda *command: {"17_3": "PENDING"})
    assert run_status.reconcile(tmp_path, FakeQueue({})).state == "queued"  # type: ignore[union-attr]


def test_a_folder_is_locked_by_one_command_at_a_time(tmp_path: Path) -> None:
    busy = pytest.raises(FolderLockedError, match="is in use by another process")
    with FileLock(tmp_path / ".lock"), busy, run_status.locked(tmp_path):
        pass
    with run_status.locked(tmp_path):
        pass


def test_a_folder_in_use_by_a_job_on_another_node_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue_with_job(tmp_path, monkeypatch)
    run_status.mark_running(tmp_path)
    with run_status.locked(tmp_path):
        pass  # the same job after a restart
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setattr(SlurmQueue, "states", lambda self: {"17_3": "RUNNING", "17_4": "RUNNING"})
    with pytest.raises(FolderLockedError, match="by job 17_3 on "), run_status.locked(tmp_path):
        pass


def test_hours_add_all_attempts_and_a_killed_one_counts_to_its_last_activity() -> None:
    attempts = (Attempt(0.0, "1", "n1", 5, ended=3600.0), Attempt(7200.0, "1", "n2", 6))
    assert Status("failed", 20000.0, starts=attempts).hours(last_activity=7200.0 + 1800.0) == 1.5


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"state": "running"}', '{"state": 1, "starts": [{}]}'])
def test_a_damaged_status_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(content)
    assert run_status.read(tmp_path) is None
    assert run_status.reconcile(tmp_path) is None


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("interrupted by SIGINT after step 20", "interrupted"),
        ("stopped by SIGTERM", "interrupted"),
        ("RuntimeError: interrupted", "failed"),
        ("two starts of job 7 in succession were stopped by SIGUSR1", "failed"),
    ],
)
def test_a_run_that_a_signal_stopped_is_interrupted_in_its_file_and_everywhere(
    reason: str, state: str, tmp_path: Path
) -> None:
    run_status.mark_running(tmp_path)
    run_status.mark_failed(tmp_path, reason)
    run_status.mark_failed(tmp_path, "RuntimeError: a consequence")
    content = json.loads((tmp_path / "status.json").read_text())
    assert (content["state"], content["reason"]) == (state, reason)
    (tmp_path / "status.json").write_text(json.dumps(content | {"state": "failed"}))  # as earlier versions wrote it
    status = run_status.read(tmp_path)
    assert status is not None
    assert (status.state, status.label, status.is_over) == (state, state, True)

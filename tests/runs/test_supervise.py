"""The ways in which a run can end, and the status file after each."""

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs import supervise as module
from diffusion_lab.runs.status import Status
from diffusion_lab.runs.supervise import RefusedError, refused_without_changes, supervise


@pytest.fixture(autouse=True)
def without_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_", "LOCAL_RANK", "RANK"))]:
        monkeypatch.delenv(name)


def status(folder: Path) -> Status:
    found = run_status.read(folder)
    assert found is not None
    return found


def raising(error: BaseException) -> Callable[[], float]:
    def work() -> float:
        raise error

    return work


def killing(number: int) -> Callable[[], float]:
    def work() -> float:
        os.kill(os.getpid(), number)
        return 1.0

    return work


def test_a_successful_run_is_finished_with_its_result(tmp_path: Path) -> None:
    assert supervise(tmp_path, lambda: 2.5) == 2.5
    assert (status(tmp_path).state, status(tmp_path).result) == ("finished", 2.5)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("seed must be at least 0, got -1."), "seed must be at least 0, got -1."),
        (RuntimeError("lost\npower"), "RuntimeError: lost power"),
    ],
)
def test_a_failed_run_has_a_reason(error: Exception, reason: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        supervise(tmp_path, raising(error))
    assert (status(tmp_path).state, status(tmp_path).reason) == ("failed", reason)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_recorded_and_raised_and_handlers_are_restored(number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedBySignal) as end:
        supervise(tmp_path, killing(number))
    assert end.value.number == number
    assert (status(tmp_path).state, status(tmp_path).reason) == (
        "interrupted", f"stopped by {signal.Signals(number).name}"
    )  # fmt: skip
    assert signal.getsignal(number) is before


def test_a_signal_before_the_work_begins_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mark_running(folder: Path) -> None:
        original(folder)
        raise StoppedBySignal(signal.SIGTERM)  # by the handler of the command

    original = run_status.mark_running
    monkeypatch.setattr(run_status, "mark_running", mark_running)
    with pytest.raises(StoppedBySignal):
        supervise(tmp_path, lambda: 2.5)
    assert (status(tmp_path).label, status(tmp_path).reason) == ("interrupted", "stopped by SIGTERM")


def test_a_second_signal_arrives_after_the_first_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mark_failed(folder: Path, reason: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(folder, reason)

    original = run_status.mark_failed
    monkeypatch.setattr(run_status, "mark_failed", mark_failed)
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    with pytest.raises(StoppedBySignal):
        supervise(tmp_path, killing(signal.SIGINT))
    signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]
    assert (status(tmp_path).label, status(tmp_path).reason) == ("interrupted", "interrupted by SIGINT")


def test_an_exit_without_a_status_becomes_a_nonzero_exit_status(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:  # as Lightning's on a SIGTERM
        supervise(tmp_path, raising(SystemExit()))
    assert end.value.code == 143
    assert status(tmp_path).state == "interrupted"


@pytest.fixture
def start_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def start_with_scontrol(command: str) -> None:
        tool = tmp_path / "bin" / "scontrol"
        tool.parent.mkdir()
        tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{command}\n')
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "17")

    def exit_now() -> None:
        raise SystemExit(0)

    monkeypatch.setattr(module, "_wait_for_slurm", exit_now)
    return start_with_scontrol


def test_a_job_requeues_itself_after_sigusr1(
    tmp_path: Path, start_job: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    start_job("exit 0")
    with pytest.raises(SystemExit):
        supervise(tmp_path / "run", killing(signal.SIGUSR1))
    assert (tmp_path / "calls").read_text() == "requeue 17\n"
    assert status(tmp_path / "run").state == "requeued"
    assert caplog.messages == ["stopped by SIGUSR1; job 17 is requeued and resumes when Slurm starts it again."]
    assert supervise(tmp_path / "run", lambda: 1.0) == 1.0  # the next attempt
    assert (status(tmp_path / "run").state, len(status(tmp_path / "run").starts)) == ("finished", 2)


def saving(path: Path) -> Callable[[], float]:
    """Return a command that saves a file before the signal arrives."""

    def work() -> float:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("progress")
        return killing(signal.SIGUSR1)()

    return work


def test_a_requeue_is_logged_before_slurm_can_end_the_process(
    tmp_path: Path, start_job: Callable[[str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_job("exit 0")
    logged = list[str]()
    monkeypatch.setattr("diffusion_lab.distributed.slurm_job.requeue", lambda: logged.extend(caplog.messages))
    with pytest.raises(SystemExit):
        supervise(tmp_path / "run", killing(signal.SIGUSR1))
    assert logged == ["stopped by SIGUSR1; job 17 is requeued and resumes when Slurm starts it again."]


def test_a_job_is_not_requeued_after_two_starts_without_progress(
    tmp_path: Path, start_job: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For example if the signal arrives before the first step. One such start may be due to a preemption."""
    start_job("exit 0")
    monkeypatch.setenv("DIFFUSION_LAB_REQUEUE_FILE", str(tmp_path / "request"))
    places = [(tmp_path / "work", "*/*")]
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    works = {
        "no progress": killing(signal.SIGUSR1), "a checkpoint": saving(checkpoint), "no file": killing(signal.SIGUSR1),
        "a newer checkpoint": saving(checkpoint), "a claim": saving(tmp_path / "work" / "a" / "0.claim"),
        "a batch": saving(tmp_path / "work" / "a" / "0.npz"), "part of one": saving(tmp_path / "work/a/1.npz.partial"),
    }  # fmt: skip
    for name, work in works.items():
        with pytest.raises(SystemExit):
            supervise(tmp_path / "run", work, places=places)
        assert status(tmp_path / "run").state == "requeued", name
    monkeypatch.setenv("SLURM_JOB_ID", "18")  # the user submitted the run again
    with pytest.raises(SystemExit):
        supervise(tmp_path / "run", works["no progress"], places=places)
    assert status(tmp_path / "run").state == "requeued"
    caplog.clear()
    with pytest.raises(SystemExit) as end:
        supervise(tmp_path / "run", works["no progress"], places=places)
    assert end.value.code == 138
    assert (tmp_path / "calls").read_text() == "requeue 17\n" * 7 + "requeue 18\n"
    assert not (tmp_path / "request").exists()
    assert (status(tmp_path / "run").state, status(tmp_path / "run").label) == ("failed", "failed")
    assert caplog.messages == [status(tmp_path / "run").reason]
    assert caplog.messages[0].startswith("two starts of job 18 in succession were stopped by SIGUSR1 before they saved")
    assert "increase its time limit (--time, hydra.launcher.time)" in caplog.messages[0]
    assert [start.saved for start in status(tmp_path / "run").starts] == [
        False, True, False, True, False, True, False, False, False,
    ]  # fmt: skip


def test_a_job_that_cannot_be_requeued_has_failed(tmp_path: Path, start_job: Callable[[str], None]) -> None:
    start_job("echo not allowed >&2; exit 1")
    with pytest.raises(StoppedBySignal):
        supervise(tmp_path / "run", killing(signal.SIGUSR1))
    assert status(tmp_path / "run").reason == "stopped by SIGUSR1, but scontrol requeue 17: not allowed"


@pytest.mark.parametrize("scontrol", ["missing", "rejected"])
def test_a_job_in_a_container_asks_its_batch_script_to_requeue_it(
    scontrol: str, tmp_path: Path, start_job: Callable[[str], None], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    start_job("echo not allowed >&2; exit 1")
    if scontrol == "missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DIFFUSION_LAB_REQUEUE_FILE", str(tmp_path / "request"))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    with pytest.raises(StoppedBySignal):
        supervise(tmp_path / "run", killing(signal.SIGUSR1))
    assert (tmp_path / "request").read_text() == "16_4\n"
    assert status(tmp_path / "run").state == "requeued"
    assert "the batch script of the job requeues it, so that it resumes (scontrol requeue 16_4: " in caplog.text
    assert ("not allowed" if scontrol == "rejected" else "is not on PATH") in caplog.text


def test_a_job_in_a_container_without_a_request_file_has_failed_with_the_remedy(
    tmp_path: Path, start_job: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start_job("exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, path in {"a": "", "b": str(tmp_path / "nowhere" / "request")}.items():
        monkeypatch.setenv("DIFFUSION_LAB_REQUEUE_FILE", path)
        with pytest.raises(StoppedBySignal):
            supervise(tmp_path / name, killing(signal.SIGUSR1))
        reason = status(tmp_path / name).reason
        assert reason is not None
        assert "scontrol requeue 17: the program is not on PATH; for a container, see docs/cluster.md" in reason
    assert f"must be a writable file, got {tmp_path}/nowhere/request: No such file" in caplog.text


def test_a_folder_in_use_remains_unchanged(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="is in use by another process"):
        supervise(tmp_path, lambda: 1.0)
    assert not (tmp_path / "status.json").exists()


def test_a_folder_of_another_run_keeps_its_status(tmp_path: Path) -> None:
    supervise(tmp_path, lambda: 2.5)
    before = status(tmp_path)
    with pytest.raises(RefusedError):
        supervise(tmp_path, raising(RefusedError("holds another")))
    assert status(tmp_path) == before
    with pytest.raises(RefusedError):
        supervise(tmp_path / "new", raising(RefusedError("holds another")))
    assert run_status.read(tmp_path / "new") is None
    with pytest.raises(RefusedError):
        supervise(tmp_path, raising(RefusedError("holds another")), in_sweep=True)
    assert status(tmp_path).reason == "holds another"  # the sweep reads it there


def test_a_refused_command_leaves_the_status_of_a_run_unchanged(tmp_path: Path) -> None:
    def refused() -> None:
        with refused_without_changes(tmp_path):
            raise UserError("optimizer.lr must be above 0, got -1.")

    with pytest.raises(UserError) as new:
        refused()
    assert type(new.value) is UserError  # of a new run, whose folder is removed
    (tmp_path / "config.yaml").touch()
    with pytest.raises(StoppedBySignal):
        supervise(tmp_path, killing(signal.SIGINT))
    before = status(tmp_path)
    assert before.state == run_status.INTERRUPTED
    with pytest.raises(RefusedError, match=r"optimizer\.lr must be above 0"):
        supervise(tmp_path, refused)
    assert status(tmp_path) == before


def test_a_requeued_run_that_is_refused_has_failed(tmp_path: Path) -> None:
    supervise(tmp_path, lambda: 1.0)
    run_status.mark_requeued(tmp_path, "stopped by SIGUSR1", saved=True)
    with pytest.raises(RefusedError):
        supervise(tmp_path, raising(RefusedError("data.path must be a folder")))
    assert (status(tmp_path).state, status(tmp_path).reason) == (run_status.FAILED, "data.path must be a folder")


def test_rank_0_writes_the_status_and_other_ranks_only_their_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    assert supervise(tmp_path, lambda: 1.0) == 1.0
    assert not (tmp_path / "status.json").exists()
    with pytest.raises(SystemExit) as end:
        supervise(tmp_path, killing(signal.SIGTERM))
    assert end.value.code == 0  # rank 0 reports how the run ended
    with pytest.raises(RuntimeError):
        supervise(tmp_path, raising(RuntimeError("lost power")))
    assert status(tmp_path).reason == "rank 1: RuntimeError: lost power"

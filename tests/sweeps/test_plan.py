"""Folder names of sweeps and the plan of what is left to do in them."""

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from diffusion_lab.config import overrides
from diffusion_lab.config.overrides import run_folder_name, sweep_folder_name
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs import status as run_status
from diffusion_lab.sweeps import plan as sweep_plan
from diffusion_lab.sweeps.plan import PlannedRun


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_arguments(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["train.py", "-m", *arguments])
        overrides.export_command_line()

    monkeypatch.setenv(overrides.SWEEP_VARIABLE, "")
    monkeypatch.setattr(sweep_plan, "_launched", {})
    return set_arguments


def test_a_sweep_is_named_after_its_experiment_its_swept_keys_and_a_digest_of_the_rest(command_line: Any) -> None:
    command_line("schedule=linear,cosine", "seed=1,2,3")
    assert sweep_folder_name(None, None) == "schedule_seed"
    command_line("schedule=linear,cosine,jsd", "seed=range(1,9)")  # the same sweep with more values
    assert sweep_folder_name(None, None) == "schedule_seed"
    command_line("experiment=quickstart", "schedule=linear,cosine", "data.batch_size=32")
    name = sweep_folder_name(None, None)
    assert name.startswith("quickstart-schedule-")
    command_line("data.batch_size=32", "experiment=quickstart", "schedule=linear,cosine", "trainer.devices=4")
    assert sweep_folder_name(None, None) == name  # in another order, on other devices
    command_line("experiment=quickstart", "schedule=linear,cosine", "data.batch_size=64")
    assert sweep_folder_name(None, None) != name
    assert sweep_folder_name("mine", None) == "mine"
    command_line("seed=1")
    assert sweep_folder_name(None, OmegaConf.create({"optimizer.lr": "interval(0,1)"})).startswith("optimizer.lr-")


def test_settings_of_the_launcher_do_not_change_the_name_of_a_sweep(command_line: Any) -> None:
    command_line("seed=1,2", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "trainer.num_nodes=2")
    assert sweep_folder_name(None, None) == "seed"


def test_a_run_is_named_after_its_swept_values_in_characters_that_need_no_quotes(command_line: Any) -> None:
    command_line("schedule=linear,cosine", "data.path=/a/b", "seed=1,2", "+new=x,y")
    assert (
        run_folder_name(["data.path=/a/b", "schedule=linear", "seed=1", "+new=x"], None)
        == "schedule-linear_seed-1_new-x"
    )
    command_line("data.path=/a/b,/a-b", "x=[1,2],[1,3]")
    names = [run_folder_name([f"data.path={path}", "x=[1,2]"], None) for path in ("/a/b", "/a-b")]
    assert len(set(names)) == 2  # names with replaced characters end in a digest
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_") for name in names)
    long = run_folder_name(["x=" + "a" * 500], OmegaConf.create({"x": 1}))
    assert len(long) == 120


def test_child_processes_receive_the_swept_keys(command_line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command_line("schedule=linear,cosine")
    monkeypatch.setattr("sys.argv", ["_submit.py", "/somewhere"])
    assert run_folder_name(["schedule=linear", "seed=1"], None) == "schedule-linear"


def plan_runs(folder: Path, *swept: str, fixed: tuple[str, ...] = ("data.batch_size=32",)) -> list[PlannedRun]:
    """Return the plan of a sweep of src/train.py.  swept: overrides of each run, separated by spaces."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", [f"hydra.sweep.dir={folder}"], RunMode.MULTIRUN)
        return sweep_plan.plan(config, [[*run.split(), *fixed] for run in swept], loader)


def started_run(folder: Path, *run_overrides: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text("".join(f"- {override}\n" for override in run_overrides))
    run_status.mark_running(folder)
    return folder


def test_finished_runs_are_skipped_and_interrupted_runs_are_resumed(command_line: Any, tmp_path: Path) -> None:
    command_line("seed=1,2,3,4,5,6", "data.batch_size=32")
    run_status.mark_finished(started_run(tmp_path / "seed-1", "seed=1", "data.batch_size=32", "sweep.name=x"), 0.5)
    run_status.mark_failed(started_run(tmp_path / "seed-2", "seed=2", "data.batch_size=32"), "RuntimeError: no")
    (tmp_path / "seed-2" / "checkpoints").mkdir()
    (tmp_path / "seed-2" / "checkpoints" / "last.ckpt").touch()
    run_status.mark_failed(started_run(tmp_path / "seed-3", "seed=3", "data.batch_size=32"), "no")
    run_status.mark_failed(started_run(tmp_path / "seed-4", "seed=4"), "interrupted by SIGINT after step 3")
    started_run(tmp_path / "seed-5", "seed=5", "data.batch_size=32")
    plan = plan_runs(tmp_path, *(f"seed={k}" for k in range(1, 7)))
    assert [run.next_action for run in plan] == [
        "skip (finished)", "resume (failed: RuntimeError: no)", "restart (failed: no)",
        "restart (interrupted by SIGINT after step 3)", "wait (running)", "start",
    ]  # fmt: skip
    assert [run.is_done for run in plan] == [True, False, False, False, False, False]
    assert [run.is_busy for run in plan] == [False, False, False, False, True, False]


def files_of(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        (["optimizer.lr=1e-3"], ["optimizer.lr=2e-3"], r"optimizer.lr \(was 0.001, got 0.002\)"),
        (["data.batch_size=64"], ["data.batch_size=32"], r"data.batch_size \(was 64, got 32\)"),
        (["schedule=linear"], ["schedule=cosine"], r"schedule \(was linear, got cosine\)"),
        (
            ["lr_schedule=cosine", "trainer.max_steps=60"],
            ["lr_schedule=cosine", "trainer.max_steps=90"],
            r"lr_schedule.num_decay_steps \(was 60, got 90\), .* \(because the learning-rate schedule is computed from "
            r"trainer.max_steps, unless a run starts with lr_schedule=constant and a fixed "
            r"lr_schedule.num_warmup_steps\); python .*train.py resume=\S*/seed-1 fork=true "
            r"trainer.max_steps=90 trains .*",
        ),
    ],
)
def test_other_settings_in_the_folder_of_a_sweep_are_refused_and_leave_its_runs_unchanged(
    before: list[str], now: list[str], change: str, command_line: Any, tmp_path: Path
) -> None:
    command_line("seed=1,2")
    run_status.mark_finished(started_run(tmp_path / "seed-1", "seed=1", *before), 0.5)
    unchanged = files_of(tmp_path)
    message = rf"sweep.name .* must name another sweep for other settings, but seed-1 in .* settings: {change}\."
    with pytest.raises(UserError, match=message):
        plan_runs(tmp_path, "seed=2", "seed=1", fixed=tuple(now))
    assert sweep_plan.finish() is None  # no table, because no run was started
    assert files_of(tmp_path) == unchanged


@pytest.mark.parametrize(
    ("max_steps", "action", "is_done"),
    [
        (30, "skip (finished with more steps than trainer.max_steps=30)", True),
        (60, "skip (finished)", True),
        (90, "restart", False),
    ],
)
def test_a_finished_run_is_resumed_only_for_more_steps(
    max_steps: int, action: str, is_done: bool, command_line: Any, tmp_path: Path
) -> None:
    command_line("seed=1,2")
    run_status.mark_finished(started_run(tmp_path / "seed-1", "seed=1", "trainer.max_steps=60"), 0.5)
    unchanged = files_of(tmp_path)
    fixed = (f"++trainer.max_steps={max_steps}", "callbacks.progress=null")  # which has no effect on the result
    (run,) = plan_runs(tmp_path, "seed=1", fixed=fixed)
    assert (run.next_action, run.is_done) == (action, is_done)
    assert files_of(tmp_path) == unchanged


def test_a_seed_that_is_not_a_whole_number_is_refused_before_the_plan(command_line: Any, tmp_path: Path) -> None:
    command_line("seed=1,2-3")
    with pytest.raises(UserError, match=r"seed must be a whole number in 0..2\^63 - 1, got 2-3\."):
        plan_runs(tmp_path, "seed=1", "seed=2-3")


OTHER_WRONG_TYPES: list[tuple[str, str]] = [
    ("optimizer.lr=true", "optimizer.lr must be a number, got True."),
    ("trainer.max_steps=abc", "trainer.max_steps must be a whole number of at least 1, got abc."),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=abc", "optimizer.lr must be a number, got abc."),
        ("model.channels=8.5", "model.channels must be a whole number, got 8.5."),
        ("num_samples=abc", "callbacks.measure_distance.num_samples must be a whole number, got abc."),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_WRONG_TYPES),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_before_the_first_run(
    override: str, message: str, command_line: Any, tmp_path: Path
) -> None:
    command_line("seed=1,2", override)
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        plan_runs(tmp_path, "seed=1", f"seed=2 {override}", fixed=("schedule=cosine",))
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_settings_with_the_types_of_their_defaults_need_no_import_of_torch(tmp_path: Path) -> None:
    settings = ["optimizer.lr=1e-3,1", "data.num_held_out=5", "trainer.precision=32-true", "model=unet_tiny,unet_small"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.dry_run=true", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    code = (
        f"import sys; sys.argv = {['train', '-m', *settings, *launcher]!r}; "
        "from diffusion_lab.commands.train import main; main(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--array=0-3" in done.stdout


def test_a_sweeper_receives_the_result_of_a_run_and_none_if_it_failed(command_line: Any, tmp_path: Path) -> None:
    command_line("seed=1,2")
    run_status.mark_finished(started_run(tmp_path / "seed-1", "seed=1"), 0.5)
    run_status.mark_failed(started_run(tmp_path / "seed-2", "seed=2"), "no")
    done, failed = (sweep_plan.job_return(run) for run in plan_runs(tmp_path, "seed=1", "seed=2", fixed=()))
    assert (done.status, done.return_value) == (JobStatus.COMPLETED, 0.5)
    assert (failed.status, failed.return_value) == (JobStatus.COMPLETED, None)


def test_two_runs_in_one_folder_are_rejected(command_line: Any, tmp_path: Path) -> None:
    command_line("seed=1,1")
    with pytest.raises(UserError, match="must have its own folder, got seed-1 twice"):
        plan_runs(tmp_path, "seed=1", "seed=1")


def test_an_evaluation_is_repeated_if_its_checkpoint_is_newer(command_line: Any, tmp_path: Path) -> None:
    command_line("sampler=ddim,ancestral")
    trained = tmp_path / "run"
    (trained / "checkpoints").mkdir(parents=True)
    (trained / "config.yaml").write_text("seed: 0\n")
    (trained / "checkpoints" / "last.ckpt").touch()
    time.sleep(0.02)
    run_overrides = ("sampler=ddim", "data.batch_size=32")
    run_status.mark_finished(started_run(tmp_path / "sweep" / "sampler-ddim", *run_overrides), 0.5)
    config = OmegaConf.create({"run": str(trained), "checkpoint": "last.ckpt"})
    status = run_status.read(tmp_path / "sweep" / "sampler-ddim")
    assert status is not None
    assert sweep_plan._is_current(config, status)
    time.sleep(0.02)
    (trained / "checkpoints" / "last.ckpt").touch()
    assert not sweep_plan._is_current(config, status)


def test_a_sweep_ends_with_its_table_and_an_error_message_about_failed_runs(
    command_line: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line("seed=1,2")
    assert sweep_plan.finish() is None  # no sweep
    run_status.mark_finished(started_run(tmp_path / "seed-1", "seed=1", "data.batch_size=32"), 0.5)
    failed = started_run(tmp_path / "seed-2", "seed=2", "data.batch_size=32")
    run_status.mark_failed(failed, "RuntimeError: [no] reason.")
    (tmp_path / "seed-1" / "summary.json").write_text(json.dumps({"loss": 0.5, "steps": 7}))
    plan_runs(tmp_path, "seed=1", "seed=2")
    assert sweep_plan.finish() == (
        "1 of the sweep's 2 runs failed; run the same command again to resume them. seed-2: RuntimeError: [no] reason."
    )
    assert "RuntimeError: [no] reason" in " ".join(capsys.readouterr().out.split())


def test_runs_that_were_not_started_are_counted_separately_and_are_started_by_the_same_command(
    command_line: Any, tmp_path: Path
) -> None:
    command_line("seed=1,2,3")
    for seed in (1, 2, 3):
        (tmp_path / f"seed-{seed}").mkdir()
        run_status.mark_not_started(tmp_path / f"seed-{seed}", "job 17_2 was canceled")
    runs = plan_runs(tmp_path, "seed=1", "seed=2", "seed=3")
    assert [(run.next_action, run.is_busy, run.is_done) for run in runs] == [("start", False, False)] * 3
    assert sweep_plan.finish() == (
        "3 of the sweep's 3 runs were not started; run the same command again to start them. seed-3: job 17_2 was "
        "canceled."
    )
    run_status.mark_running(tmp_path / "seed-1")
    run_status.mark_failed(tmp_path / "seed-1", "RuntimeError: no")
    run_status.mark_running(tmp_path / "seed-2")
    run_status.mark_finished(tmp_path / "seed-2", 0.5)
    assert sweep_plan.finish() == (
        "1 of the sweep's 3 runs failed and 1 was not started; run the same command again to resume them. seed-1: "
        "RuntimeError: no; seed-3: job 17_2 was canceled."
    )
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["failed", "finished", "not started"]
    run_status.mark_running(tmp_path / "seed-2")
    run_status.mark_failed(tmp_path / "seed-2", "interrupted by SIGINT after step 8")
    assert str(sweep_plan.finish()).startswith(
        "1 of the sweep's 3 runs failed, 1 was interrupted and 1 was not started; run the same command again to resume"
    )

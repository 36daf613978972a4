"""Sweeps as arrays of Slurm jobs and as processes on this machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from cluster.conftest import (
    ROOT,
    SHORT,
    TRAIN_ONLY,
    TWO_RANKS,
    finish,
    run,
    start,
    status,
    steps,
    table,
    wait_for,
    wait_for_end,
)
from cluster.slurm import Slurm

ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.time=10", "hydra.launcher.signal_before=60")
MISHAP = ("trainer.max_steps=12", "+callbacks.mishap._target_=mishaps.Mishap", "callbacks.save_last.every_n_steps=2")


def test_a_sweep_of_runs_with_two_ranks_has_a_folder_and_a_row_per_run_and_runs_once(
    slurm: Slurm, tmp_path: Path
) -> None:
    overrides = (
        "-m",
        *SHORT,
        *TWO_RANKS,
        "schedule=linear,cosine",
        "seed=1,2",
        *ON_SLURM,
        f"hydra.sweep.dir={tmp_path}",
    )
    output = run("train", *overrides)
    names = [f"schedule-{schedule}_seed-{seed}" for schedule in ("linear", "cosine") for seed in (1, 2)]
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name[0] != ".")
    assert folders == sorted(names)
    assert output.count(" start ") == 4
    rows = table(tmp_path)
    assert [(row["run"], row["state"], row["step"]) for row in rows] == [(name, "finished", "6") for name in names]
    for name, row in zip(names, rows, strict=True):
        folder = tmp_path / name
        files = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "metrics.csv", "metrics.json", "samples", "checkpoints", "status.json"} <= files
        assert [path.name for path in folder.glob("*.log")] == ["train.log"]  # of rank 0 only
        (number,) = json.loads((folder / "metrics.json").read_text())["numbers"]
        assert float(row["fd_fashion_cnn_20_train"]) == number["value"] == status(folder)["result"]
        assert steps(folder) == [1, 2, 3, 4, 5, 6]
    assert len({row["loss"] for row in rows}) == 4
    jobs = {status(tmp_path / name)["starts"][0]["slurm_id"].partition("_")[0] for name in names}
    assert len(jobs) == 1  # one array
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"against_schedule.png", "contact_sheet.png"}
    again = run("train", *overrides)
    assert "4 of them done" in " ".join(again.split())
    assert "submitted" not in again
    assert len(status(tmp_path / names[0])["starts"]) == 1


def test_a_sweep_with_failed_runs_ends_and_the_same_command_resumes_only_those(slurm: Slurm, tmp_path: Path) -> None:
    kinds = "raise,kill,cancel,none"
    sweep = tmp_path / "sweep"
    overrides = (
        "-m", *TRAIN_ONLY, *MISHAP, f"+callbacks.mishap.folder={tmp_path}", f"+callbacks.mishap.kind={kinds}",
        *ON_SLURM, f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    (tmp_path / "none.happened").touch()
    first = start("train", *overrides)
    on_a_node = start(
        "train", "-m", *TRAIN_ONLY, *MISHAP, f"+callbacks.mishap.folder={tmp_path}", "+callbacks.mishap.kind=node",
        "trainer.max_steps=40", *ON_SLURM, "hydra.launcher.more={nodelist: n2}", f"hydra.sweep.dir={tmp_path / 'node'}",
    )  # fmt: skip
    wait_for("a run to cancel", (tmp_path / "cancel.happened").exists)
    folders = {kind: sweep / f"callbacks.mishap.kind-{kind}" for kind in kinds.split(",")}
    slurm.run("scancel", status(folders["cancel"])["starts"][0]["slurm_id"])
    output = finish(first, status=1)
    assert "2 of the sweep's 4 runs failed and 1 was interrupted; run the same command again to resume them" in output
    reasons = {kind: status(folder)["reason"] for kind, folder in folders.items()}
    assert reasons["raise"] == "RuntimeError: the third step failed"
    assert reasons["cancel"].startswith("stopped by SIGTERM after step")
    assert re.search(r"ended without a status: FAILED; .*task 0: Killed.* \(.submitit/.*\.err\)$", reasons["kill"])
    states = {row["run"].rpartition("-")[2]: row["state"] for row in table(sweep)}
    assert states == {"raise": "failed", "kill": "failed", "cancel": "interrupted", "none": "finished"}
    assert "RuntimeError: the third step failed" in next(folders["raise"].glob("slurm_*.err")).read_text()

    wait_for("a run on the node to stop", (tmp_path / "node.happened").exists)
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    again = run("train", *overrides)
    assert (again.count("resume (failed"), again.count("resume (stopped by SIGTERM")) == (2, 1)
    assert "submitted 3 runs" in again
    assert [row["state"] for row in table(sweep)] == ["finished"] * 4
    starts = {kind: len(status(folder)["starts"]) for kind, folder in folders.items()}
    assert starts == {"raise": 2, "kill": 2, "cancel": 2, "none": 1}
    assert all(steps(folder) == list(range(1, 13)) for folder in folders.values())

    down = slurm.run("sinfo", "-h", "-n", "n2", "-p", "main", "-o", "%T")
    if down.startswith("down"):  # the node may have returned by itself
        slurm.run("scontrol", "update", "nodename=n2", "state=resume")
    finish(on_a_node)  # the sweep waited while the run was requeued
    lost = tmp_path / "node" / "run"  # the only run of the sweep
    assert (status(lost)["state"], len(status(lost)["starts"])) == ("finished", 2)
    assert steps(lost) == list(range(1, 41))


def test_a_sweep_of_the_console_command_runs_its_module_in_the_jobs(slurm: Slurm, tmp_path: Path) -> None:
    overrides = ("-m", *TRAIN_ONLY, *TWO_RANKS, "seed=1,2", *ON_SLURM, f"hydra.sweep.dir={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_lab", "train", *overrides], text=True, capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(row["seed"], row["state"], row["step"]) for row in table(tmp_path)] == [
        ("1", "finished", "6"), ("2", "finished", "6"),
    ]  # fmt: skip
    (output,) = (tmp_path / "seed-1").glob("slurm_*.out")
    assert f"\n  python -m diffusion_lab sample run={tmp_path / 'seed-1'} num_images=64\n" in output.read_text()


def test_forty_toy_runs_eight_at_a_time_all_finish_and_are_in_the_table(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Path(__file__).with_name("toy.py")
    seeds = ",".join(map(str, range(40)))
    overrides = ("-m", f"seed={seeds}", *ON_SLURM, "hydra.launcher.num_at_once=8", f"hydra.sweep.dir={tmp_path}")
    finish(start(os.path.relpath(toy.with_suffix(""), toy.parents[2] / "src"), *overrides))
    rows = table(tmp_path)
    assert [(row["seed"], row["state"], float(row["loss"])) for row in rows] == [
        (str(seed), "finished", seed**2 / 10) for seed in range(40)
    ]
    starts = [status(tmp_path / f"seed-{seed}")["starts"][0] for seed in range(40)]
    began = [{key: datetime.fromisoformat(start[key]) for key in ("began", "ended")} for start in starts]
    at_once = max(sum(one["began"] <= other["began"] < one["ended"] for one in began) for other in began)
    assert at_once <= 8
    span = (max(one["ended"] for one in began) - min(one["began"] for one in began)).total_seconds()
    with capsys.disabled():
        print(f"\n40 toy jobs of 0.5 s, 8 at a time: {span:.1f} s, {span / 40 - 0.5 / 8:.2f} s of overhead per job")


def test_a_search_on_slurm_continues_after_its_launcher_was_killed(slurm: Slurm, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    overrides = (
        "-m", *TRAIN_ONLY, "hydra/sweeper=optuna", "hydra.sweeper.num_trials=4", *ON_SLURM,
        "optimizer.lr=tag(log,interval(1e-4,1e-2))", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    first = start("train", *overrides)
    wait_for("the first two runs", lambda: len(list(tmp_path.glob("*/metrics.csv"))) == 2)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    started = {path.parent.name for path in tmp_path.glob("*/status.json")}
    output = run("train", *overrides)
    assert output.count("wait (running)") + output.count("skip (finished)") == 2
    assert "the best of 4 runs:" in output
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["finished"] * 4
    assert started < {row["run"] for row in rows}
    assert all(len(status(tmp_path / row["run"])["starts"]) == 1 for row in rows)


def test_a_sweep_of_a_package_outside_finds_its_configs_on_the_nodes(slurm: Slurm, tmp_path: Path) -> None:
    project = ROOT / "examples" / "my_project"
    output = run(
        "train", "-m", "--config-dir", str(project / "conf"), "experiment=shapes", "data.store.num_images=60",
        "trainer.max_steps=2", "callbacks.sample_images=null", "callbacks.measure_distance=null", "model.depth=1,2",
        *ON_SLURM, f"hydra.sweep.dir={tmp_path}", PYTHONPATH=str(project),
    )  # fmt: skip
    assert output.count(" start ") == 2
    assert [row["state"] for row in table(tmp_path)] == ["finished", "finished"]


@pytest.mark.parametrize("launcher", [ON_SLURM, ("hydra/launcher=local_parallel",)], ids=["slurm", "local_parallel"])
def test_the_jobs_of_a_sweep_trust_the_packages_that_its_command_line_names(
    slurm: Slurm, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    project = ROOT / "examples" / "my_project"
    run(
        "train", "--config-dir", str(project / "conf"), "experiment=shapes", "data.store.num_images=60",
        "trainer.max_steps=2", "callbacks.sample_images=null", "callbacks.measure_distance=null", "model.depth=1",
        f"hydra.run.dir={tmp_path / 'trained'}", PYTHONPATH=str(project),
    )  # fmt: skip
    copied = shutil.copytree(tmp_path / "trained", tmp_path / "copied")
    sweep = ("-m", f"run={copied}", "seed=1,2", "num_images=2", *launcher, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    refused = run("sample", *sweep, status=1, PYTHONPATH=str(project))
    assert "trust=[my_project]" in refused
    run("sample", *sweep, "trust=[my_project]", PYTHONPATH=str(project))
    assert len(list((tmp_path / "sweep").rglob("*.png"))) >= 2


def test_runs_with_two_ranks_run_in_parallel_on_one_machine(slurm: Slurm, tmp_path: Path) -> None:
    overrides = (
        "-m",
        *TRAIN_ONLY,
        *TWO_RANKS,
        "seed=1,2",
        "hydra/launcher=local_parallel",
        f"hydra.sweep.dir={tmp_path}",
    )
    first = start("train", *overrides)
    wait_for("a step", lambda: any(tmp_path.glob("*/metrics.csv")))
    killed = next(tmp_path.glob("*/metrics.csv")).parent
    os.kill(status(killed)["starts"][0]["pid"], signal.SIGKILL)
    assert "1 of the sweep's 2 runs failed" in finish(first, status=1)
    assert status(killed)["reason"]  # of the killed rank, or of the other rank, which lost the connection to it
    run("train", *overrides)
    assert [row["state"] for row in table(tmp_path)] == ["finished"] * 2
    wait_for_end(killed)

"""Batch scripts of the Slurm launcher; tests/cluster submits them to a real Slurm."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.sweeps.sbatch_options import missing_programs, python_command, refusal, sbatch_options
from support.commands import train


def settings(**changes: Any) -> dict[str, Any]:
    """Settings of conf/hydra/launcher/slurm.yaml."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / "hydra" / "launcher" / "slurm.yaml"))
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items() if name != "_target_"} | {"name": "train"} | changes


def dry_run(folder: Path, *overrides: str) -> str:
    """Return what a sweep prints with dry_run=true, and check that it writes no files and needs no Slurm."""
    done = train(
        "-m", "hydra/launcher=slurm", "hydra.launcher.dry_run=true", *overrides, f"hydra.sweep.dir={folder}",
        PATH=str(folder.parent),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_prints_the_batch_script_and_the_command_of_each_array_task(tmp_path: Path) -> None:
    output = dry_run(
        tmp_path / "sweep", "hydra.launcher.prefix=apptainer exec --nv image.sif",
        "hydra.launcher.python=/opt/my python", "hydra.launcher.partition=gpu",
        "hydra.launcher.more={constraint: a100}", "trainer.devices=2", "data.path=/a b", "seed=1,2",
    )  # fmt: skip
    assert not (tmp_path / "sweep").exists()
    assert "#SBATCH --array=0-1%2\n" in output
    assert "#SBATCH --partition=gpu\n" in output
    assert "#SBATCH --constraint=a100\n" in output
    assert "#SBATCH --ntasks-per-node=2\n" in output
    (command,) = re.findall(r"^srun .*", output, flags=re.MULTILINE)
    assert command.endswith(
        f" apptainer exec --nv image.sif '/opt/my python' -u -m submitit.core._submit {tmp_path}/sweep/.submitit/%j"
    )
    tasks = re.findall(r"^# array task (\d) executes: (.*)", output, flags=re.MULTILINE)
    assert [number for number, _ in tasks] == ["0", "1"]
    for seed, (_, text) in enumerate(tasks, 1):
        assert text.startswith("apptainer exec --nv image.sif '/opt/my python' ")
        assert re.search(rf"train.py .*trainer.devices=2 'data.path=/a.* b' seed={seed} ", text)
        assert f"'hydra.run.dir=\"{tmp_path}/sweep/seed-{seed}\"'" in text
    assert output.endswith("must contain this package, with submitit.\ndry run: nothing was submitted.\n")


def test_a_dry_run_keeps_the_runs_of_a_sweep_that_exists(tmp_path: Path) -> None:
    (tmp_path / "sweep" / "seed-1").mkdir(parents=True)
    (tmp_path / "sweep" / "seed-1" / "status.json").write_text(
        '{"state": "failed", "since": 1, "reason": "no", "result": null, "launcher": null, "starts": []}'
    )
    output = dry_run(tmp_path / "sweep", "seed=1,2")
    assert "restart (failed: no)" in output
    assert output.count(" executes: ") == 2
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"seed-1", "multirun.yaml"}


def test_a_dry_run_of_a_search_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done = train(
        "-m", "hydra/launcher=slurm", "hydra/sweeper=optuna", "hydra.launcher.dry_run=true",
        "optimizer.lr=interval(1e-4,1e-2)", f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: hydra.launcher.dry_run must be false with hydra/sweeper=optuna")
    assert not (tmp_path / "sweep").exists()


def test_the_default_python_is_the_running_one() -> None:
    assert python_command(settings()) == sys.executable
    assert python_command(settings(python="/opt/python", prefix="nice -n 5")) == "nice -n 5 /opt/python"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": "sh -c 'a"}, r"hydra.launcher.prefix must be the words of a shell .*, or null, got sh -c 'a"),
        ({"prefix": ["a"]}, r"hydra.launcher.prefix must be the words of a shell command"),
        ({"python": "a\nb"}, r"hydra.launcher.python must be the path of a Python, or null, got"),
        ({"python": ""}, r"hydra.launcher.python must be the path of a Python, or null, got \."),
        ({"node_cache": 3}, r"hydra.launcher.node_cache must be a folder on the disk of each node, or null, got 3"),
        ({"memory": "much"}, r"hydra.launcher.memory must be a size such as 64G or 500M, or null, got much\."),
        ({"dry_run": "maybe"}, r"hydra.launcher.dry_run must be true or false, got maybe"),
        ({"requeue": 1}, r"hydra.launcher.requeue must be true or false, got 1"),
        ({"more": {"exclude": ["a"]}}, r"hydra.launcher.more.exclude must be a text, .* or null, got \['a'\]\."),
        ({"time": 2}, r"must be longer than hydra.launcher.signal_before \(120 seconds\), got 2 \(120 seconds\)\."),
        ({"time": "2:00"}, r"got 2:00 \(120 seconds\)"),
        ({"time": "0:01:59"}, r"got 0:01:59 \(119 seconds\)"),
        ({"time": "0-00:02"}, r"got 0-00:02 \(120 seconds\)"),
        ({"time": "00:00:00"}, r"got 00:00:00 \(0 seconds\)"),
        ({"time": "1-0", "signal_before": 86400}, r"signal_before \(86400 seconds\), got 1-0 \(86400 seconds\)"),
        ({"more": {"time": 1}}, r"got 1 \(60 seconds\)"),
        ({"more": {"signal": "B:USR1@3600"}}, r"signal_before \(3600 seconds\), got 60 \(3600 seconds\)"),
    ],
)
def test_settings_that_are_not_accepted_are_rejected(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        sbatch_options(None, settings(**changes), tmp_path)


@pytest.mark.parametrize("memory", [64, "64G", "500M", "2t", None])
def test_sizes_of_slurm_are_accepted(memory: Any, tmp_path: Path) -> None:
    assert sbatch_options(None, settings(memory=memory), tmp_path)["additional_parameters"].get("mem") == memory


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            "sbatch: error: invalid partition specified: gpu",
            "hydra.launcher.partition must be accepted by Slurm, got gpu (sbatch: error: invalid partition "
            "specified: gpu).",
        ),
        ("Invalid account or account/partition combination specified", "hydra.launcher.partition must be accepted"),
        ("Invalid qos specification", "hydra/launcher=slurm: Invalid qos specification."),  # no such setting was given
        ("Memory specification can not be satisfied", "hydra.launcher.memory must be accepted by Slurm, got 9T ("),
        ("Requested time limit is invalid (missing or exceeds some limit)", "hydra.launcher.time must be accepted"),
        ("More processors requested than permitted", "hydra.launcher.cpus must be accepted by Slurm, got 99 (More"),
        ("Invalid generic resource (gres) specification", "hydra.launcher.gpus must be accepted by Slurm, got 8 ("),
        ("a controller that does not respond", "hydra/launcher=slurm: a controller that does not respond."),
    ],
)
def test_a_refusal_of_slurm_names_the_setting(reason: str, message: str) -> None:
    given = settings(partition="gpu", memory="9T", cpus=99, gpus=8)
    assert refusal(reason, given).startswith(message)


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({}, []),
        ({"python": sys.executable}, []),
        ({"prefix": "env A=1", "python": "/in/the/image/python"}, []),
        ({"python": "/no/python"}, ["hydra.launcher.python: this machine has no program /no/python; "]),
        ({"prefix": "apptainr exec x.sif"}, ["hydra.launcher.prefix: this machine has no program apptainr; "]),
    ],
)
def test_programs_that_this_machine_does_not_have_are_noted(changes: dict[str, Any], notes: list[str]) -> None:
    found = list(missing_programs(settings(**changes)))
    assert len(found) == len(notes)
    assert all(text.startswith(note) for text, note in zip(found, notes, strict=True))


@pytest.mark.parametrize(
    "changes",
    [{"time": 3}, {"time": "2:01"}, {"time": "0-00:02:01"}, {"time": "1-0", "signal_before": 86399},
     {"more": {"signal": "USR2"}}, {"more": {"time": "UNLIMITED"}}],
)  # fmt: skip
def test_a_time_limit_after_the_signal_is_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    assert sbatch_options(None, settings(**changes), tmp_path)["additional_parameters"]["time"]


def run_script(lines: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Execute lines of a batch script with an scontrol that writes its arguments to the file `calls`."""
    tools = {"scontrol": f'echo "$@" >> {folder}/calls', "sleep": "true"}
    for name, line in tools.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "21"}
    return subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("asks", "calls"), [(True, "requeue 16_4\n"), (False, None)])
def test_the_batch_script_requeues_a_job_only_if_its_run_asks_for_it_and_keeps_the_exit_status(
    asks: bool, calls: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "a sweep"
    (folder / ".submitit").mkdir(parents=True)
    (folder / ".submitit" / "requeue_21").write_text("0\n")  # of an earlier start, which a node failure interrupted
    options = sbatch_options(None, settings(node_cache="$HOME/x"), folder)
    run = ['test "$DIFFUSION_LAB_NODE_CACHE" = "$HOME/x" && test ! -e "$DIFFUSION_LAB_REQUEUE_FILE" || exit 99']
    run += ['echo 16_4 > "$DIFFUSION_LAB_REQUEUE_FILE"'] * asks
    done = run_script([*options["setup"], *run, "(exit 138)", "", "# teardown", *options["teardown"]], tmp_path)
    assert (done.returncode, done.stderr) == (138, "")
    assert ((tmp_path / "calls").read_text() if asks else None) == calls
    assert not list((folder / ".submitit").iterdir())


def test_without_requeue_the_batch_script_has_no_additional_lines(tmp_path: Path) -> None:
    options = sbatch_options(None, settings(requeue=False), tmp_path)
    assert "setup" not in options
    assert "teardown" not in options
    assert sbatch_options(None, settings(requeue=False, setup=["module load cuda"]), tmp_path)["setup"] == [
        "module load cuda"
    ]

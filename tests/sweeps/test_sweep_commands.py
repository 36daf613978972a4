"""Sweeps that are refused, interrupted and continued by real commands."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_lab.commands.sweep import _parsed
from diffusion_lab.errors import UserError
from support.commands import ROOT, TINY, run, start, train


def states(sweep: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["state"] for path in sorted(sweep.glob("*/status.json"))}


OTHER_REFUSED_SWEEPS: list[tuple[list[str], str]] = [
    (["-m", "seed=1,2", "trainer.devices=2"], r"hydra/launcher=in_turn needs runs with a single rank, .*"),
    (
        ["-m", "seed=1,2", "hydra/launcher=local_parallel", "hydra.launcher.num_at_once=0"],
        r"hydra.launcher.num_at_once must be a whole number of at least 1, got 0\.",
    ),
    (
        ["-m", "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.signal_before=0"],
        r"hydra.launcher.signal_before must be a whole number of at least 1, got 0\.",
    ),
    (["-m", "schedule=linear,cosin"], r"schedule must be one of .*, got cosin; perhaps you mean cosine\."),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "seed=1-3,2"], r"seed must be a whole number in 0..2\^63 - 1, got 1-3\."),
        (
            ["-m", "hydra/launcher=joblib"],
            r"hydra/launcher must be one of in_turn, local_parallel, slurm, got joblib;.*",
        ),
        (["launcher=local_parallel"], r"launcher is not a setting; perhaps you mean hydra/launcher; .*"),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_REFUSED_SWEEPS),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_refused_sweep_prints_no_plan_and_leaves_no_folder(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = train(*TINY, *arguments, f"logs={tmp_path}")
    assert done.returncode == 1
    assert re.fullmatch(f"error: {message}", done.stderr.strip()), done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("train/*"))


@pytest.mark.parametrize(
    "launcher",
    [[], pytest.param(["hydra/launcher=local_parallel", "hydra.launcher.num_at_once=1"], marks=pytest.mark.full)],
    ids=["in_turn", "local_parallel"],
)
def test_a_sweep_after_ctrl_c_is_continued_by_the_same_command(launcher: list[str], tmp_path: Path) -> None:
    few = [override for override in TINY if "max_steps" not in override]
    command = ["-m", *few, "seed=1,2", "trainer.log_every_n_steps=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    sweep = start("train.py", *command, "trainer.max_steps=100000", *launcher)
    log = tmp_path / "sweep" / "seed-1" / "metrics.csv"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert states(tmp_path / "sweep") == {"seed-1": "running", "seed-2": "queued"}
    os.kill(sweep.pid, signal.SIGINT)
    done = sweep.wait()
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "note: the sweep was interrupted; the same command continues it."
    assert "resume=" not in done.stderr
    assert states(tmp_path / "sweep") == {"seed-1": "interrupted", "seed-2": "not started"}
    shown = run("sweep.py", "status", str(tmp_path / "sweep"))
    assert "1 interrupted, 1 not started; the command that started the sweep continues it" in shown.stdout

    step = max(int(line.partition(",")[0]) for line in log.read_text().splitlines()[1:])
    again = train(*command, f"trainer.max_steps={step + 2}")
    assert again.returncode == 0, again.stderr
    assert re.search(r"seed-1 .* resume \(interrupted by SIGINT after step \d+\)", again.stdout)
    assert states(tmp_path / "sweep") == {"seed-1": "finished", "seed-2": "finished"}


@pytest.mark.full
def test_a_finished_sweep_is_neither_changed_nor_shortened_by_another_command(tmp_path: Path) -> None:
    command = ["-m", *TINY, "seed=1,2", f"logs={tmp_path}", "sweep.name=mine"]
    assert train(*command).returncode == 0
    sweep = tmp_path / "train" / "mine"
    before = {path: path.read_bytes() for path in sweep.glob("*/*") if path.is_file()}
    other = train(*command, "optimizer.lr=0.5")
    assert other.returncode == 1
    assert other.stderr.strip() == (
        f"error: sweep.name (or hydra.sweep.dir) must name another sweep for other settings, but seed-1 in {sweep} is "
        "a run with other settings: optimizer.lr (was 0.0005, got 0.5)."
    )
    shorter = train(*command, "trainer.max_steps=1")
    assert shorter.returncode == 0, shorter.stderr
    assert shorter.stdout.count("skip (finished with more steps than trainer.max_steps=1)") == 2
    assert {path: path.read_bytes() for path in sweep.glob("*/*") if path.is_file()} == before

    resumed = train(f"resume={sweep}", f"logs={tmp_path}")
    assert resumed.stderr.strip().endswith("; the command that started a sweep also continues it.")


def test_the_status_of_a_single_run_is_refused(tmp_path: Path) -> None:
    single = tmp_path / "train" / "single"
    few = [override for override in TINY if "sample_images" not in override]
    pictures = ["callbacks.sample_images.num_frames=0", "callbacks.sample_images.num_images=4"]
    done = train(*few, *pictures, f"logs={tmp_path}", f"hydra.run.dir={single}")
    assert done.returncode == 0, done.stderr
    assert f"  samples     {single}/samples/step_0000002.png\n" in done.stdout  # without an animation
    shown = run("sweep.py", "status", "single", f"logs={tmp_path}")
    assert shown.stderr == (
        "error: `folder` must be a sweep folder, a run in it or last, got single, which is a single run (finished) and "
        f"no sweep; `python src/compare.py numbers={single}` prints its results.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "last"], "got stats last; perhaps you mean status last."),
        (["stat"], "got stat; perhaps you mean status SWEEP_FOLDER."),
        (["last"], "got last; perhaps you mean status last."),
        (["show", "last"], "got show last."),
        (["status", "run=a"], "the folder must be given without run=, got run=a; perhaps you mean status a."),
    ],
    ids=" ".join,
)
def test_wrong_arguments_of_sweep_are_refused_with_what_may_be_meant(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        _parsed(arguments)
    assert str(error.value).endswith(message)


RECORD_IMPORTS = """
import sys
from diffusion_lab.runs import status

def mark_running(folder, mark=status.mark_running):
    print("imported" if "lightning" in sys.modules else "not imported", flush=True)
    mark(folder)

status.mark_running = mark_running
from diffusion_lab.commands.train import main
main()
"""


@pytest.mark.full
def test_the_duration_of_the_first_run_of_a_sweep_includes_no_imports(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RECORD_IMPORTS, "-m", *TINY, "seed=1,2", f"hydra.sweep.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "imported" in line] == ["imported", "imported"]

"""Jobs in a container without Slurm's programs, represented by a program that hides them from the command it starts."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.conftest import (
    ROOT,
    TRAIN_ONLY,
    TWO_RANKS,
    command,
    finish,
    run,
    same_weights,
    start,
    status,
    steps,
    table,
    wait_for,
    wait_for_end,
)
from cluster.slurm import Slurm

LONG = (*TRAIN_ONLY, "trainer.max_steps=40", "callbacks.save_last.every_n_steps=1000")
SLOW = ("+callbacks.slow._target_=mishaps.SlowRank0",)
ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.time=10", "hydra.launcher.signal_before=60")


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A program with the command line of apptainer; it writes its arguments to the file `calls` and runs the rest."""
    program = tmp_path / "apptainer"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/calls
test "$1 $2 $3" = "exec --nv image.sif" || {{ echo "FATAL:   could not open image $3" >&2; exit 9; }}
shift 3
PATH={Path(sys.executable).parent} exec "$@"
"""
    )
    program.chmod(0o755)
    return program


def documented_script() -> str:
    """Return the batch script for containers in docs/cluster.md."""
    blocks = re.findall(r"((?:^    .*\n|^\n)+)", (ROOT / "docs" / "cluster.md").read_text(), flags=re.MULTILINE)
    (script,) = [block for block in blocks if "DIFFUSION_LAB_REQUEUE_FILE" in block and "#!/bin/bash" in block]
    return "\n".join(line.removeprefix("    ") for line in script.strip("\n").splitlines()) + "\n"


def submit(slurm: Slurm, container: Path, arguments: list[str], *options: str) -> str:
    """Submit the documented batch script with another command in the container, and return the job id."""
    folder = container.parent
    script = re.sub(r"#SBATCH --(nodes|ntasks|gpus|cpus|time|signal).*\n", "", documented_script())
    script, count = re.subn(
        r"apptainer exec --nv image.sif .*", f"{container} exec --nv image.sif {shlex.join(arguments)}", script
    )
    assert count == 1
    (folder / "train.sh").write_text(script)
    options += ("--nodes=1", "--signal=USR1@60", f"--output={folder}/out", f"--chdir={folder}")
    return slurm.run("sbatch", "--parsable", *options, str(folder / "train.sh"))


def test_the_documented_script_requeues_a_container_until_the_run_equals_an_uninterrupted_one(
    slurm: Slurm, tmp_path: Path, container: Path
) -> None:
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    uninterrupted = start("train", *LONG, *TWO_RANKS, f"hydra.run.dir={complete}")
    arguments = command("train", *LONG, *TWO_RANKS, *SLOW, f"hydra.run.dir={interrupted}")
    job_id = submit(slurm, container, arguments, "--ntasks-per-node=2")
    for number, step in enumerate((5, 14), 1):
        wait_for(f"step {step}", lambda: max(steps(interrupted), default=0) >= step)  # noqa: B023 - called before the next iteration
        slurm.run("scancel", "--signal=USR1", job_id)
        wait_for("the next start", lambda: len(status(interrupted)["starts"]) == number + 1)  # noqa: B023
    wait_for_end(interrupted)
    finish(uninterrupted)
    assert steps(interrupted) == list(range(1, 41))
    assert same_weights(complete, interrupted)
    output = (tmp_path / "out").read_text()
    assert output.count("the batch script of the job requeues it, so that it resumes") == 2
    assert len((tmp_path / "calls").read_text().splitlines()) == 6  # three starts of two ranks
    wait_for("the end of the job", lambda: slurm.run("squeue", "-h", "-j", job_id) == "")
    wait_for("the record", lambda: "COMPLETED" in slurm.run("sacct", "-n", "-X", "-j", job_id, "-o", "State"))
    assert not list(tmp_path.glob("requeue_*"))


def test_a_container_that_is_preempted_is_requeued_and_loses_no_step(
    slurm: Slurm, tmp_path: Path, container: Path
) -> None:
    folder, exclusive = tmp_path / "run", ("--exclusive", "--nodelist=n2")
    arguments = command("train", *LONG, *SLOW, f"hydra.run.dir={folder}")
    submit(slurm, container, arguments, "--partition=spare", *exclusive, "--ntasks-per-node=1")
    wait_for("step 5", lambda: max(steps(folder), default=0) >= 5)
    slurm.run("sbatch", "--partition=main", *exclusive, "--output=/dev/null", "--chdir=/", "--wrap=true")
    wait_for_end(folder)
    assert len(status(folder)["starts"]) == 2
    assert steps(folder) == list(range(1, 41))


def test_a_sweep_in_a_container_is_requeued_by_its_batch_script(slurm: Slurm, tmp_path: Path, container: Path) -> None:
    sweep = tmp_path / "sweep"
    overrides = (
        "-m", *LONG, *SLOW, "seed=1,2", *ON_SLURM, f"hydra.launcher.prefix={container} exec --nv image.sif",
        f"hydra.launcher.python={sys.executable}", f"hydra.launcher.node_cache={tmp_path}/node",
        f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    printed = run("train", *overrides, "hydra.launcher.dry_run=true")
    assert not sweep.exists()
    launched = start("train", *overrides)
    folders = [sweep / "seed-1", sweep / "seed-2"]
    wait_for("step 5 of both runs", lambda: all(max(steps(folder), default=0) >= 5 for folder in folders))
    jobs = [status(folder)["starts"][0]["slurm_id"] for folder in folders]
    slurm.run("scancel", "--signal=USR1", jobs[1])
    finish(launched)
    assert [(row["seed"], row["state"], row["step"]) for row in table(sweep)] == [
        ("1", "finished", "40"), ("2", "finished", "40"),
    ]  # fmt: skip
    assert [len(status(folder)["starts"]) for folder in folders] == [1, 2]  # only the task that got the signal
    assert steps(folders[1]) == list(range(1, 41))
    assert len((tmp_path / "calls").read_text().splitlines()) == 3
    assert len(list((tmp_path / "node").glob("diffusion_lab/images/*/pixels.uint8"))) == 1
    (script,) = (sweep / ".submitit").glob("*/*_submission.sh")
    assert script.read_text() in printed
    for number, folder in enumerate(folders):
        assert f"# array task {number} executes: {container} exec --nv image.sif {sys.executable} " in printed
        assert f'hydra.run.dir="{folder}"' in printed
    assert not list((sweep / ".submitit").glob("requeue_*"))


def test_a_container_that_does_not_start_is_the_reason_of_the_failure(
    slurm: Slurm, tmp_path: Path, container: Path
) -> None:
    sweep = tmp_path / "sweep"
    overrides = (
        "-m", *LONG, "seed=1,2", *ON_SLURM, f"hydra.launcher.prefix={container} exec --nv missing.sif",
        f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    output = finish(start("train", *overrides), status=1)
    found = re.fullmatch(r"job (\w+) ended without a status: [\w ]+; (.*)", status(sweep / "seed-1")["reason"])
    assert found is not None  # the state may be unknown: accounting is not synchronized with the end of a job
    assert found[2] == f"FATAL: could not open image missing.sif (.submitit/{found[1]}/{found[1]}_0_log.err)"
    assert output.count("FATAL: could not open image missing.sif") >= 2
    assert "FATAL: could not open image missing.sif" in run("sweep", "status", str(sweep))


def test_queued_runs_of_a_canceled_array_are_not_started_and_the_same_command_starts_them(
    slurm: Slurm, tmp_path: Path
) -> None:
    overrides = (
        "-m", *TRAIN_ONLY, *SLOW, "seed=1,2,3", *ON_SLURM, "hydra.launcher.num_at_once=1",
        f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    launched = start("train", *overrides)
    wait_for("step 2 of the first run", lambda: max(steps(tmp_path / "seed-1"), default=0) >= 2)
    slurm.run("scancel", status(tmp_path / "seed-1")["starts"][0]["slurm_id"].partition("_")[0])
    output = finish(launched, status=1)
    assert "1 of the sweep's 3 runs was interrupted and 2 were not started; run the same command again" in output
    assert [row["state"] for row in table(tmp_path)] == ["interrupted", "not started", "not started"]
    shown = subprocess.run(
        [sys.executable, str(ROOT / "src" / "sweep.py"), "status", str(tmp_path)], capture_output=True, text=True
    )
    assert shown.stdout.count("not started") >= 2
    assert status(tmp_path / "seed-3")["reason"].endswith("was canceled")
    again = run("train", *overrides)
    assert (again.count("resume (stopped by SIGTERM"), again.count(" start ")) == (1, 2)
    with (tmp_path / "sweep.csv").open() as file:
        assert [(row["state"], row["step"]) for row in csv.DictReader(file)] == [("finished", "6")] * 3

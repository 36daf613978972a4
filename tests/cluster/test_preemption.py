"""Jobs that are interrupted before their last step and restarted."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.conftest import (
    TRAIN_ONLY,
    TWO_RANKS,
    command,
    finish,
    run,
    same_weights,
    sbatch,
    start,
    status,
    steps,
    wait_for,
    wait_for_end,
)
from cluster.slurm import Slurm

LONG = (*TRAIN_ONLY, "trainer.max_steps=40", "callbacks.save_last.every_n_steps=1000")
SLOW_RANK_0 = ("+callbacks.slow._target_=mishaps.SlowRank0",)


def test_a_run_that_is_requeued_three_times_ends_with_the_weights_of_an_uninterrupted_run(
    slurm: Slurm, tmp_path: Path
) -> None:
    """Rank 0 is slower than rank 1, so that they are at different places when the signal arrives."""
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    sbatch(slurm, "train", *LONG, *TWO_RANKS, f"hydra.run.dir={complete}", tasks=2, output=tmp_path / "complete.out")
    job_id = sbatch(
        slurm,
        "train",
        *LONG,
        *TWO_RANKS,
        *SLOW_RANK_0,
        "data.num_workers=2",
        f"hydra.run.dir={interrupted}",
        tasks=2,
        output=tmp_path / "interrupted.out",
    )
    for number, step in enumerate((5, 14, 23), 1):
        wait_for(f"step {step}", lambda: max(steps(interrupted), default=0) >= step)  # noqa: B023 - called before the next iteration
        slurm.run("scancel", "--signal=USR1", job_id)
        wait_for("the next start", lambda: len(status(interrupted)["starts"]) == number + 1)  # noqa: B023
    for folder in (complete, interrupted):
        wait_for_end(folder)
    assert steps(interrupted) == list(range(1, 41))
    assert same_weights(complete, interrupted)
    output = (tmp_path / "interrupted.out").read_text()
    assert output.count("is requeued and resumes when Slurm starts it again") == 3
    assert "to resume:" not in output
    assert not list(interrupted.rglob("hpc_ckpt*"))
    assert {path.name for path in (interrupted / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()].count("interrupted") == 1


def test_a_run_longer_than_three_time_limits_resumes_at_each_step_to_the_same_weights(
    slurm: Slurm, tmp_path: Path
) -> None:
    """Slurm sends its signal to all processes of the ranks, also to the two that load data for each of them."""
    long = (*TRAIN_ONLY, *TWO_RANKS, "trainer.max_steps=70", "callbacks.save_last.every_n_steps=10000")
    overrides = (*long, "data.num_workers=2")
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    slow = (
        "+callbacks.slow._target_=mishaps.SlowFirstStarts", f"+callbacks.slow.folder={interrupted}",
        "+callbacks.slow.num_starts=3", f"hydra.run.dir={interrupted}",
    )  # fmt: skip
    options = ("--time=2", "--signal=USR1@30", "--nodelist=n1")
    sbatch(slurm, "train", *overrides, *slow, tasks=2, output=tmp_path / "out", options=options)
    wait_for("a step", lambda: steps(interrupted))
    run("train", *overrides, f"hydra.run.dir={complete}")
    wait_for("the end of the run", lambda: status(interrupted)["state"] == "finished", 500)
    assert steps(interrupted) == list(range(1, 71))
    assert same_weights(complete, interrupted)
    output = (tmp_path / "out").read_text()
    stopped = re.findall(r"stopped by SIGUSR1 after step (\d+); job \d+ is requeued", output)
    assert re.findall(r"resuming after step (\d+)", output) == stopped
    assert len(stopped) == len(status(interrupted)["starts"]) - 1 >= 3
    assert "Traceback" not in output


def test_a_run_that_is_stopped_twice_before_its_first_step_is_not_requeued_again(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job_id = sbatch(slurm, "train", *LONG, f"hydra.run.dir={folder}", output=tmp_path / "out")
    for number in (1, 2):
        wait_for("a start", lambda: len(status(folder)["starts"]) == number)  # noqa: B023 - called before the next iteration
        slurm.run("scancel", "--signal=USR1", job_id)
    wait_for_end(folder, "failed")
    reason = f"two starts of job {job_id} in succession were stopped by SIGUSR1 before they saved any progress"
    assert status(folder)["reason"].startswith(reason)
    wait_for("the end of the job", lambda: slurm.run("squeue", "-h", "-j", job_id) == "")
    assert (tmp_path / "out").read_text().count(f"error: {reason}") == 1
    assert [start["saved"] for start in status(folder)["starts"]] == [False, False]
    assert steps(folder) == []


def test_a_preempted_run_resumes_to_the_same_weights_and_stays_one_run_on_weights_and_biases(
    slurm: Slurm, tmp_path: Path
) -> None:
    """A job in the partition `main` preempts one in the partition `spare` on the same node."""
    pictures = ("callbacks.sample_images.every_n_steps=10", "callbacks.sample_images.num_images=4")
    overrides = (*[override for override in LONG if "sample_images=null" not in override], *pictures)
    complete, interrupted = tmp_path / "complete", tmp_path / "interrupted"
    uninterrupted = start("train", *overrides, f"hydra.run.dir={complete}")
    exclusive = ("--exclusive", "--nodelist=n2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        options = ("--partition=spare", *exclusive, f"--export=ALL,WANDB_MODE=offline,HOME={tmp_path}")
        overrides += ("logger=wandb", f"hydra.run.dir={interrupted}", "sweep.name=these")
        sbatch(slurm, "train", *overrides, output=tmp_path / "out", options=options)
    wait_for("step 12", lambda: max(steps(interrupted), default=0) >= 12)
    slurm.run("sbatch", "--partition=main", *exclusive, "--output=/dev/null", "--chdir=/", "--wrap=true")
    wait_for_end(interrupted)
    finish(uninterrupted)
    assert len(status(interrupted)["starts"]) == 2
    assert steps(interrupted) == list(range(1, 41))
    assert same_weights(complete, interrupted)
    _check_wandb(interrupted)


def _check_wandb(folder: Path) -> None:
    """Check the offline files of a run with two starts."""
    starts = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(starts) == 2
    (run_id,) = {path.stem.removeprefix("run-") for path in starts}
    assert run_id == (folder / "wandb_id").read_text().splitlines()[0]
    records = [json.loads(line) for path in starts for line in _inspect(path).splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [row["trainer/global_step"] for row in history] == list(range(1, 41))
    assert [row["trainer/global_step"] for row in history if "samples.count" in row] == [10, 20, 30, 40]
    (summary, _) = (json.loads(_inspect(path, "--summary")) for path in starts)
    assert (summary["config"]["seed"], summary["config"]["model"]["channels"]) == (0, 32)
    assert {record["run"]["run_group"] for record in records if record["type"] == "run"} == {"these"}
    images = [path for start in starts for path in start.parent.glob("files/media/images/*.png")]
    assert len(images) == 4
    with Image.open(images[0]) as picture:
        assert picture.size == (4 * 58 + 2, 60)


def _inspect(path: Path, *options: str) -> str:
    wandb = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *options, str(path)]
    return subprocess.run(wandb, capture_output=True, text=True, check=True).stdout


def test_a_run_that_receives_sigterm_saves_its_state_and_is_interrupted(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job_id = sbatch(slurm, "train", *LONG, f"hydra.run.dir={folder}", output=tmp_path / "out")
    wait_for("step 5", lambda: max(steps(folder), default=0) >= 5)
    slurm.run("scancel", "--signal=TERM", job_id)
    wait_for_end(folder, "interrupted")
    assert status(folder)["reason"].startswith("stopped by SIGTERM after step")
    num_steps = len(steps(folder))
    wait_for("the end of the job", lambda: slurm.run("squeue", "-h", "-j", job_id) == "")
    wait_for(
        "the accounting record", lambda: slurm.run("sacct", "-n", "-X", "-j", job_id, "-o", "State").strip() == "FAILED"
    )
    run("train", *LONG, f"hydra.run.dir={folder}")  # the same command in the same folder resumes
    assert steps(folder) == list(range(1, 41))
    assert num_steps < 40


def test_a_rank_that_fails_ends_the_job_with_its_traceback(slurm: Slurm, tmp_path: Path) -> None:
    overrides = (*LONG, *TWO_RANKS, "+callbacks.fails._target_=mishaps.FailOnRank1")
    under_srun, plain = tmp_path / "srun", tmp_path / "plain"
    sbatch(slurm, "train", *overrides, f"hydra.run.dir={under_srun}", tasks=2, output=tmp_path / "out")
    done = subprocess.run(command("train", *overrides, f"hydra.run.dir={plain}"), capture_output=True, text=True)
    assert done.returncode != 0
    wait_for_end(under_srun, "failed")
    wait_for("the end of the job", lambda: slurm.run("squeue", "-h") == "")
    for folder, text in ((under_srun, (tmp_path / "out").read_text()), (plain, done.stderr)):
        assert "RuntimeError: only rank 1 failed" in text
        assert "rank 1: RuntimeError: only rank 1 failed" in status(folder)["reason"]

"""Jobs that are ended before their last step, and start again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cluster.conftest import (
    BARE,
    TWO,
    command,
    run,
    said_by,
    same_weights,
    sbatch,
    start,
    status,
    steps,
    wait,
    wait_for_end,
)
from cluster.slurm import Slurm

LONG = (*BARE, "trainer.max_steps=40", "callbacks.save_last.every_n_steps=1000")
SLOWER = ("+callbacks.slower._target_=mishaps.Slower",)


def test_a_chain_of_three_requeues_ends_at_the_planned_step_with_the_weights_of_an_undisturbed_run(
    slurm: Slurm, tmp_path: Path
) -> None:
    """Two processes, of which one is slower: they are in different places when the signal comes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sbatch(slurm, "train", *LONG, *TWO, f"hydra.run.dir={whole}", tasks=2, output=tmp_path / "whole.out")
    identity = sbatch(
        slurm, "train", *LONG, *TWO, *SLOWER, f"hydra.run.dir={cut}", tasks=2, output=tmp_path / "cut.out"
    )
    for number, step in enumerate((5, 14, 23), 1):
        wait(f"step {step}", lambda: max(steps(cut), default=0) >= step)  # noqa: B023 - asked before the next
        slurm.ask("scancel", "--signal=USR1", identity)
        wait("the next start", lambda: len(status(cut)["starts"]) == number + 1)  # noqa: B023
    for folder in (whole, cut):
        wait_for_end(folder)
    assert steps(cut) == list(range(1, 41))
    assert same_weights(whole, cut)
    said = (tmp_path / "cut.out").read_text()
    assert said.count("is queued again and goes on from there") == 3
    assert "resume=" not in said
    assert not list(cut.rglob("hpc_ckpt*"))
    assert {path.name for path in (cut / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()].count("cut") == 1


def test_a_preempted_run_goes_on_as_if_nothing_had_been_and_is_one_run_on_weights_and_biases(
    slurm: Slurm, tmp_path: Path
) -> None:
    """A job of the partition `main` needs the node of one in `spare`."""
    pictures = ("callbacks.sample_images.every_n_steps=10", "callbacks.sample_images.num_images=4")
    words = (*[word for word in LONG if "sample_images=null" not in word], *pictures, "logger=wandb")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    alone = start("train", *[word for word in words if word != "logger=wandb"], f"hydra.run.dir={whole}")
    exclusive = ("--exclusive", "--nodelist=n2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        options = ("--partition=spare", *exclusive, f"--export=ALL,WANDB_MODE=offline,HOME={tmp_path}")
        sbatch(slurm, "train", *words, f"hydra.run.dir={cut}", "sweep.name=these", output=tmp_path / "o", more=options)
    wait("step 12", lambda: max(steps(cut), default=0) >= 12)
    slurm.ask("sbatch", "--partition=main", *exclusive, "--output=/dev/null", "--chdir=/", "--wrap=true")
    wait_for_end(cut)
    said_by(alone)
    assert len(status(cut)["starts"]) == 2
    assert steps(cut) == list(range(1, 41))
    assert same_weights(whole, cut)
    _check_wandb(cut)


def _check_wandb(folder: Path) -> None:
    """What can be read out of the files of the two starts of one run."""
    starts = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(starts) == 2
    (identity,) = {path.stem.removeprefix("run-") for path in starts}
    assert identity == (folder / "wandb_id").read_text().splitlines()[0]
    records = [json.loads(line) for path in starts for line in _inspect(path).splitlines()]
    told = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [row["trainer/global_step"] for row in told] == list(range(1, 41))
    assert [row["trainer/global_step"] for row in told if "samples.count" in row] == [10, 20, 30, 40]
    (summary, _) = (json.loads(_inspect(path, "--summary")) for path in starts)
    assert (summary["config"]["seed"], summary["config"]["model"]["channels"]) == (0, 32)
    assert {record["run"]["run_group"] for record in records if record["type"] == "run"} == {"these"}
    images = [path for start in starts for path in start.parent.glob("files/media/images/*.png")]
    assert len(images) == 4
    with Image.open(images[0]) as picture:
        assert picture.size == (4 * 58 + 2, 60)


def _inspect(path: Path, *words: str) -> str:
    wandb = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *words, str(path)]
    return subprocess.run(wandb, capture_output=True, text=True, check=True).stdout


def test_a_sigterm_alone_saves_and_is_no_success(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    identity = sbatch(slurm, "train", *LONG, f"hydra.run.dir={folder}", output=tmp_path / "out")
    wait("step 5", lambda: max(steps(folder), default=0) >= 5)
    slurm.ask("scancel", "--signal=TERM", identity)
    wait_for_end(folder, "failed")
    assert status(folder)["reason"].startswith("stopped by SIGTERM after step")
    done = len(steps(folder))
    wait("the end of the job", lambda: slurm.ask("squeue", "-h", "-j", identity) == "")
    wait("the account", lambda: slurm.ask("sacct", "-n", "-X", "-j", identity, "-o", "State").strip() == "FAILED")
    run("train", *LONG, f"hydra.run.dir={folder}")  # the same command in the same folder goes on
    assert steps(folder) == list(range(1, 41))
    assert done < 40


def test_a_process_that_fails_ends_the_job_with_its_traceback(slurm: Slurm, tmp_path: Path) -> None:
    words = (*LONG, *TWO, "+callbacks.fails._target_=mishaps.OneRank")
    under_srun, plain = tmp_path / "srun", tmp_path / "plain"
    sbatch(slurm, "train", *words, f"hydra.run.dir={under_srun}", tasks=2, output=tmp_path / "out")
    said = subprocess.run(command("train", *words, f"hydra.run.dir={plain}"), capture_output=True, text=True)
    assert said.returncode != 0
    wait_for_end(under_srun, "failed")
    wait("the end of the job", lambda: slurm.ask("squeue", "-h") == "")
    for folder, text in ((under_srun, (tmp_path / "out").read_text()), (plain, said.stderr)):
        assert "RuntimeError: the second process went wrong" in text
        assert "process 1: RuntimeError: the second process went wrong" in status(folder)["reason"]

"""The same command under everything that starts processes, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.conftest import (
    BARE,
    FEW,
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

TWO_TASKS = ("--nodes=1", "--ntasks-per-node=2")


def ended(*words: str) -> str:
    """The last line of a command that is refused."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0, done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert lines, done.stderr
    return lines[0]


def test_an_evaluation_on_two_nodes_that_is_queued_again_comes_to_the_numbers_of_one_process(
    slurm: Slurm, tmp_path: Path
) -> None:
    trained, spread = tmp_path / "run", tmp_path / "spread"
    run("train", *BARE, f"hydra.run.dir={trained}")
    long = "sampler.num_steps=40"
    words = (f"run={trained}", "num_samples=36", "batch_size=4", "num_pictures=0", "metrics=[fid,kid]", long)
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", f"work_folder={tmp_path / 'work'}")
    identity = sbatch(
        slurm,
        "evaluate",
        *words,
        *ddp,
        f"hydra.run.dir={spread}",
        tasks=2,
        output=tmp_path / "out",
        more=("--nodes=2",),
    )
    wait("a batch of images", lambda: any(path.is_file() for path in (tmp_path / "work").rglob("*")))
    slurm.ask("scancel", "--signal=USR1", identity)
    alone = start("evaluate", *words, f"hydra.run.dir={tmp_path / 'alone'}")
    wait("the next start", lambda: len(status(spread)["starts"]) == 2)
    wait_for_end(spread)
    said_by(alone)
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text())["numbers"] for name in ("alone", "spread"))
    assert [number["name"] for number in one] == [number["name"] for number in other]
    assert [n["value"] for n in one] == pytest.approx([n["value"] for n in other], rel=1e-9)
    assert [path.name for path in spread.glob("*.log")] == ["evaluate.log"]


def test_two_processes_train_the_same_whoever_starts_them(slurm: Slurm, tmp_path: Path) -> None:
    """Plain Python, also in a batch job of two tasks without srun; torchrun; srun."""
    words = (*BARE, *TWO)
    plain = tmp_path / "plain"
    first = start("train", *words, f"hydra.run.dir={plain}")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node=2"]
    said_by(first)
    subprocess.run([*torchrun, *command("train", *words, f"hydra.run.dir={tmp_path / 'torchrun'}")[1:]], check=True)
    subprocess.run(["srun", "-n2", *command("train", *words, f"hydra.run.dir={tmp_path / 'srun'}")], check=True)
    batch = " ".join(command("train", *words, f"hydra.run.dir={tmp_path / 'batch'}"))
    slurm.ask("sbatch", *TWO_TASKS, f"--output={tmp_path / 'out'}", "--chdir=/", f"--wrap={batch}")
    wait_for_end(tmp_path / "batch")
    for name in ("torchrun", "srun", "batch"):
        assert steps(tmp_path / name) == [1, 2, 3, 4, 5, 6]
        assert same_weights(plain, tmp_path / name), name


def test_a_job_names_its_folder_whatever_it_does(slurm: Slurm, tmp_path: Path) -> None:
    """Without a folder on the command line: all tasks of a job, and all its starts, have the same one."""
    shown = (
        'python -c "import sys; sys.argv[1:] = []; from diffusion_lab.distributed import slurm_job; '
        'print(slurm_job.job_name())"'
    )
    code = f"{sys.executable} {shown.removeprefix('python ')}"
    output = tmp_path / "out"
    identity = slurm.ask(
        "sbatch",
        "--parsable",
        *TWO_TASKS,
        f"--output={output}",
        "--chdir=/",
        f"--wrap={code}; srun {code}; srun {code}",
    )
    wait("the end", lambda: output.is_file() and len(output.read_text().split()) == 5)
    assert sorted(output.read_text().split()) == [f"slurm_{identity}"] * 3 + [f"slurm_{identity}.1"] * 2


@pytest.mark.parametrize(
    ("starter", "words", "sentence"),
    [
        (
            ["srun", *TWO_TASKS],
            [*BARE, "trainer=ddp", "trainer.devices=3", "trainer.accelerator=cpu"],
            "trainer.devices must be 2, as many processes as srun started here (--ntasks-per-node), got 3.",
        ),
        (
            ["srun", *TWO_TASKS],
            BARE,
            "trainer must be of the 2 processes that srun started here, got one: trainer=ddp.",
        ),
        (
            [],
            ["-m", *FEW, *TWO, "seed=1,2"],
            "hydra/launcher=local_parallel, which give each run its own processes, or",
        ),
        (
            [],
            ["-m", *BARE, *TWO, "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.nodes=2"],
            "hydra.launcher.nodes must be trainer.num_nodes=1, got 2.",
        ),
        (
            [],
            ["-m", *BARE, "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.partition=nowhere"],
            "hydra/launcher=slurm: sbatch: error: invalid partition specified: nowhere",
        ),
        (
            [],
            ["-m", *BARE, *TWO, "seed=1,2", "hydra/launcher=submitit_local"],
            "trainer.devices must be 1, as many processes as submitit started here (hydra.launcher.tasks_per_node)",
        ),
        (
            ["srun", *TWO_TASKS],
            [*BARE, *TWO, "data.batch_size=5"],
            "data.batch_size is the global batch and must be divisible by processes",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_refused_before_training(
    starter: list[str], words: list[str], sentence: str, slurm: Slurm, tmp_path: Path
) -> None:
    place = "hydra.sweep.dir" if "-m" in words else "hydra.run.dir"
    assert sentence in ended(*starter, *command("train", *words, f"{place}={tmp_path / 'run'}"))
    assert not list(tmp_path.rglob("metrics.csv"))


def test_two_jobs_cannot_write_one_run_folder(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    long = (*BARE, "trainer.max_steps=2000", f"hydra.run.dir={folder}")
    identity = sbatch(slurm, "train", *long, output=tmp_path / "out")
    wait("a step", lambda: steps(folder))
    assert f"{folder} is being worked in by" in ended(*command("train", *long))
    assert f"{folder} is being worked in by" in ended("srun", "--nodelist=n2", *command("train", *long))
    slurm.ask("scancel", identity)
    wait_for_end(folder, "failed")

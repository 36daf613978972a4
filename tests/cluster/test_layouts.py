"""Commands whose ranks are started by Lightning, torchrun, srun or submitit, and rejected layouts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.conftest import (
    SHORT,
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

TWO_TASKS = ("--nodes=1", "--ntasks-per-node=2")


def error_of(*command_line: str) -> str:
    """Run a command that fails and return its error message."""
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0, done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert lines, done.stderr
    return lines[0]


def test_a_requeued_evaluation_on_two_nodes_gives_the_numbers_of_a_single_rank(slurm: Slurm, tmp_path: Path) -> None:
    trained, distributed = tmp_path / "run", tmp_path / "distributed"
    run("train", *TRAIN_ONLY, f"hydra.run.dir={trained}")
    settings = ("num_samples=36", "batch_size=4", "num_pictures=0", "metrics=[fid,kid]", "sampler.num_steps=40")
    overrides = (f"run={trained}", *settings)
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", f"work_folder={tmp_path / 'work'}")
    job_id = sbatch(
        slurm,
        "evaluate",
        *overrides,
        *ddp,
        f"hydra.run.dir={distributed}",
        tasks=2,
        output=tmp_path / "out",
        options=("--nodes=2",),
    )
    wait_for("a batch of images", lambda: any(path.is_file() for path in (tmp_path / "work").rglob("*")))
    slurm.run("scancel", "--signal=USR1", job_id)
    single = start("evaluate", *overrides, f"hydra.run.dir={tmp_path / 'single'}")
    wait_for("the next start", lambda: len(status(distributed)["starts"]) == 2)
    wait_for_end(distributed)
    finish(single)
    folders = tmp_path / "single", distributed
    one, other = (json.loads((folder / "metrics.json").read_text())["numbers"] for folder in folders)
    assert [number["name"] for number in one] == [number["name"] for number in other]
    assert [n["value"] for n in one] == pytest.approx([n["value"] for n in other], rel=1e-9)
    assert [path.name for path in distributed.glob("*.log")] == ["evaluate.log"]


def test_two_ranks_train_the_same_weights_with_every_launcher(slurm: Slurm, tmp_path: Path) -> None:
    """Lightning, also in a batch job of two tasks without srun; torchrun; srun."""
    overrides = (*TRAIN_ONLY, *TWO_RANKS)
    plain = tmp_path / "plain"
    first = start("train", *overrides, f"hydra.run.dir={plain}")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node=2"]
    finish(first)
    subprocess.run([*torchrun, *command("train", *overrides, f"hydra.run.dir={tmp_path / 'torchrun'}")[1:]], check=True)
    subprocess.run(["srun", "-n2", *command("train", *overrides, f"hydra.run.dir={tmp_path / 'srun'}")], check=True)
    batch = " ".join(command("train", *overrides, f"hydra.run.dir={tmp_path / 'batch'}"))
    slurm.run("sbatch", *TWO_TASKS, f"--output={tmp_path / 'out'}", "--chdir=/", f"--wrap={batch}")
    wait_for_end(tmp_path / "batch")
    for name in ("torchrun", "srun", "batch"):
        assert steps(tmp_path / name) == [1, 2, 3, 4, 5, 6]
        assert same_weights(plain, tmp_path / name), name


def test_the_default_run_folder_is_named_after_the_job_and_its_steps(slurm: Slurm, tmp_path: Path) -> None:
    """All tasks of a step have the same name; the name of the second step differs."""
    shown = (
        'python -c "import sys; sys.argv[1:] = []; from diffusion_lab.distributed import slurm_job; '
        'print(slurm_job.job_name())"'
    )
    code = f"{sys.executable} {shown.removeprefix('python ')}"
    output = tmp_path / "out"
    job_id = slurm.run(
        "sbatch",
        "--parsable",
        *TWO_TASKS,
        f"--output={output}",
        "--chdir=/",
        f"--wrap={code}; srun {code}; srun {code}",
    )
    wait_for("the end", lambda: output.is_file() and len(output.read_text().split()) == 5)
    assert sorted(output.read_text().split()) == [f"slurm_{job_id}"] * 3 + [f"slurm_{job_id}.1"] * 2


@pytest.mark.parametrize(
    ("starter", "overrides", "message"),
    [
        (
            ["srun", *TWO_TASKS],
            [*TRAIN_ONLY, "trainer=ddp", "trainer.devices=3", "trainer.accelerator=cpu"],
            "trainer.devices must be 2 (the number of ranks that srun started on this node, set by --ntasks-per-node), "
            "got 3.",
        ),
        (
            ["srun", *TWO_TASKS],
            TRAIN_ONLY,
            "trainer.devices must be 2 (the number of ranks that srun started on this node, set by --ntasks-per-node), "
            "got 1; set trainer=ddp.",
        ),
        (
            [],
            ["-m", *SHORT, *TWO_RANKS, "seed=1,2"],
            "hydra/launcher=local_parallel, which start separate processes for each run, or",
        ),
        (
            [],
            ["-m", *TRAIN_ONLY, *TWO_RANKS, "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.nodes=2"],
            "hydra.launcher.nodes must equal trainer.num_nodes (1), got 2.",
        ),
        (
            [],
            ["-m", *TRAIN_ONLY, "seed=1,2", "hydra/launcher=slurm", "hydra.launcher.partition=nowhere"],
            "hydra.launcher.partition must be accepted by Slurm, got nowhere (sbatch: error: invalid partition",
        ),
        (
            [],
            ["-m", *TRAIN_ONLY, *TWO_RANKS, "seed=1,2", "hydra/launcher=submitit_local"],
            "trainer.devices must be 1 (the number of ranks that submitit started on this node, set by "
            "hydra.launcher.tasks_per_node)",
        ),
        (
            ["srun", *TWO_TASKS],
            [*TRAIN_ONLY, *TWO_RANKS, "data.batch_size=5"],
            "data.batch_size (the global batch size) must be divisible by the world size",
        ),
    ],
)
def test_an_invalid_layout_is_rejected_before_training(
    starter: list[str], overrides: list[str], message: str, slurm: Slurm, tmp_path: Path
) -> None:
    key = "hydra.sweep.dir" if "-m" in overrides else "hydra.run.dir"
    assert message in error_of(*starter, *command("train", *overrides, f"{key}={tmp_path / 'run'}"))
    assert not list(tmp_path.rglob("metrics.csv"))


def test_two_jobs_cannot_write_one_run_folder(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = (*TRAIN_ONLY, "trainer.max_steps=2000", f"hydra.run.dir={folder}")
    job_id = sbatch(slurm, "train", *overrides, output=tmp_path / "out")
    wait_for("a step", lambda: steps(folder))
    assert f"{folder} is in use by" in error_of(*command("train", *overrides))
    assert f"{folder} is in use by" in error_of("srun", "--nodelist=n2", *command("train", *overrides))
    slurm.run("scancel", job_id)
    wait_for_end(folder, "interrupted")

"""Tests of the commands on a real Slurm; run by make test-cluster."""

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import slurm as slurm_daemons
from cluster.slurm import Slurm

ROOT = Path(__file__).parents[2]
SKIPPED: list[str] = []

SHORT = (
    "model=unet_tiny", "data.batch_size=8", "trainer.max_steps=6", "trainer.log_every_n_steps=1", "num_samples=20",
    "callbacks.measure_distance.every_n_steps=6", "callbacks.sample_images.every_n_steps=6", "sampler.num_steps=2",
    "callbacks.sample_images.num_images=4", "callbacks.sample_images.num_frames=0", "trainer.precision=32-true",
)  # fmt: skip
"""Overrides for a run of a few seconds, most of which are its start."""

TRAIN_ONLY = (*SHORT, "callbacks.measure_distance=null", "callbacks.sample_images=null")
"""Overrides for a short run that neither samples nor measures."""

TWO_RANKS = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason in SKIPPED[:1]:
        terminalreporter.write_line(f"ALL TESTS ON SLURM WERE SKIPPED: {reason}.", red=True, bold=True)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A Slurm cluster of two nodes; skips the tests if this machine cannot run one."""
    try:
        slurm_daemons.require()
    except slurm_daemons.CannotRunError as error:
        SKIPPED.append(str(error))
        pytest.skip(f"Slurm cannot run: {error}")
    with slurm_daemons.running() as cluster, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(cluster.conf))
        patch.setenv("OMP_NUM_THREADS", "1")
        # For the callbacks in mishaps.py, and for the package, which the jobs of a sweep import before src/train.py.
        patch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{ROOT / 'src'}")
        yield cluster


def command(script: str, *arguments: str) -> list[str]:
    """Return the command line of a script in src/."""
    return [sys.executable, str(ROOT / "src" / f"{script}.py"), *arguments]


def start(script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a command in the background.  environment: additional variables."""
    return subprocess.Popen(
        command(script, *arguments), env={**os.environ, **environment}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", *, status: int = 0, seconds: float = 240) -> str:
    """Wait for the end of a command, check its exit status, and return its output."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == status, output
    return output


def run(script: str, *arguments: str, status: int = 0, **environment: str) -> str:
    """Run a command, check its exit status, and return its output."""
    return finish(start(script, *arguments, **environment), status=status)


def sbatch(
    cluster: Slurm, script: str, *arguments: str, tasks: int = 1, output: Path, options: tuple[str, ...] = ()
) -> str:
    """Submit a batch job that starts a command with srun, as in docs/cluster.md, and return its job id."""
    quoted = " ".join(f"'{argument}'" for argument in command(script, *arguments))
    return cluster.run(
        "sbatch", "--parsable", "--nodes=1", f"--ntasks-per-node={tasks}", "--signal=USR1@60", "--requeue",
        "--open-mode=append", f"--output={output}", "--chdir=/", *options, f"--wrap=srun --kill-on-bad-exit=1 {quoted}",
    )  # fmt: skip


def wait_for(what: str, condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until a condition is true.  Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def status(folder: Path) -> dict[str, Any]:
    """Return the content of a status file; the state is None if there is no file yet."""
    with contextlib.suppress(FileNotFoundError):
        content: dict[str, Any] = json.loads((folder / "status.json").read_text())
        return content
    return {"state": None, "starts": []}


def wait_for_end(folder: Path, state: str = "finished") -> None:
    """Wait until a run has a state."""
    wait_for(f"state {state} of {folder.name}", lambda: status(folder)["state"] == state, 180)


def steps(folder: Path) -> list[int]:
    """Return the steps with a logged loss."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("step") and row.get("loss")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors in the last checkpoint of a run."""
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def same_weights(one: Path, other: Path) -> bool:
    """Return whether the last checkpoints of two runs are identical to the last bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def table(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the table of a sweep."""
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))

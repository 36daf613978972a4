"""Tests on a real Slurm, through the real commands; run by make test-cluster."""

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

from cluster import slurm as one_machine
from cluster.slurm import Slurm

ROOT = Path(__file__).parents[2]
SKIPPED: list[str] = []

FEW = (
    "model=unet_tiny", "data.batch_size=8", "trainer.max_steps=6", "trainer.log_every_n_steps=1", "num_samples=20",
    "callbacks.measure_distance.every_n_steps=6", "callbacks.sample_images.every_n_steps=6", "sampler.num_steps=2",
    "callbacks.sample_images.num_images=4", "callbacks.sample_images.num_frames=0", "trainer.precision=32-true",
)  # fmt: skip
"""A run of some seconds, of which most are its start."""

BARE = (*FEW, "callbacks.measure_distance=null", "callbacks.sample_images=null")
"""One that trains and nothing else."""

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason in SKIPPED[:1]:
        terminalreporter.write_line(f"NOTHING WAS TESTED ON SLURM: {reason}.", red=True, bold=True)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Two nodes that wait for jobs; skips the tests where there can be none."""
    try:
        one_machine.require()
    except one_machine.CannotRunError as error:
        SKIPPED.append(str(error))
        pytest.skip(f"no Slurm: {error}")
    with one_machine.running() as cluster, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(cluster.conf))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # of the mishaps
        yield cluster


def command(script: str, *words: str) -> list[str]:
    """A command of the product."""
    return [sys.executable, str(ROOT / "src" / f"{script}.py"), *words]


def start(script: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
    """Starts a command, whose words can be read later."""
    return subprocess.Popen(
        command(script, *words), env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def said_by(process: "subprocess.Popen[str]", *, status: int = 0, seconds: float = 240) -> str:
    """All that a command said, after its end."""
    said, _ = process.communicate(timeout=seconds)
    assert process.returncode == status, said
    return said


def run(script: str, *words: str, status: int = 0, **environment: str) -> str:
    """A command to its end."""
    return said_by(start(script, *words, **environment), status=status)


def sbatch(cluster: Slurm, script: str, *words: str, tasks: int = 1, output: Path, more: tuple[str, ...] = ()) -> str:
    """A batch job that gives a command to srun, as docs/cluster.md says; its identity."""
    quoted = " ".join(f"'{word}'" for word in command(script, *words))
    return cluster.ask(
        "sbatch", "--parsable", "--nodes=1", f"--ntasks-per-node={tasks}", "--signal=USR1@60", "--requeue",
        "--open-mode=append", f"--output={output}", "--chdir=/", *more, f"--wrap=srun --kill-on-bad-exit=1 {quoted}",
    )  # fmt: skip


def wait(what: str, condition: Callable[[], object], seconds: float = 120) -> None:
    """Until something is so, and not for a fixed time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} in {seconds} s"
        time.sleep(0.05)


def status(folder: Path) -> dict[str, Any]:
    """What a status file says; of state none where there is none yet."""
    with contextlib.suppress(FileNotFoundError):
        content: dict[str, Any] = json.loads((folder / "status.json").read_text())
        return content
    return {"state": None, "starts": []}


def wait_for_end(folder: Path, state: str = "finished") -> None:
    """Until a run has a state."""
    wait(f"{folder.name} must be {state}, is {status(folder)}", lambda: status(folder)["state"] == state, 180)


def steps(folder: Path) -> list[int]:
    """The steps that a run has logged its loss of."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("step") and row.get("loss")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a run has learned."""
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs have learned the same to the last bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of a sweep's table."""
    with (folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))

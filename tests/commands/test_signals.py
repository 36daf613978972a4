"""Signals to a training run and to its process group: what is saved, how the run ends, and what is left of it."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.commands import ROOT, SMALL, start, table, train

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
NUM_STEPS = 14
SETTINGS = [
    *[override for override in SMALL if "max_steps" not in override],
    *(
        f"trainer.max_steps={NUM_STEPS}",
        "callbacks.sample_images.every_n_steps=4",
        "callbacks.save_last.every_n_steps=5",
    ),
    "model.blocks.dropout=0.1",
]
TIMINGS = ("images_per_second", "data_wait", "measuring_seconds", "measuring_share")


def layout(num_workers: int, num_ranks: int) -> list[str]:
    ranks = [] if num_ranks == 1 else [f"trainer.devices={num_ranks}", "trainer.strategy=ddp"]
    return [*SETTINGS, f"data.num_workers={num_workers}", *ranks]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, float]]:
    """The folder and the duration in seconds of a run that is never stopped, by the number of ranks."""
    return {}


def reference(runs: dict[int, tuple[Path, float]], num_ranks: int, folder: Path) -> tuple[Path, float]:
    if num_ranks not in runs:
        started = time.monotonic()
        done = train(*layout(0, num_ranks), f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
        runs[num_ranks] = folder, time.monotonic() - started
    return runs[num_ranks]


def outcome(folder: Path) -> tuple[list[dict[str, str]], dict[str, torch.Tensor], list[bytes]]:
    """Return the logged numbers, the weights and the sample images of a run."""
    rows = [{key: row[key] for key in sorted(row) if key not in TIMINGS} for row in table(folder / "metrics.csv")]
    pictures = [path.read_bytes() for path in sorted((folder / "samples").glob("*.png"))]
    weights: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return rows, weights, pictures


def members(group: int) -> list[int]:
    """Return the running processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def stop(folder: Path, number: int, *, num_workers: int, num_ranks: int, after: float, to_group: bool) -> None:
    """Start a run, and send a signal `after` seconds after it has begun; check how it ends."""
    command = start("train.py", *layout(num_workers, num_ranks), f"hydra.run.dir={folder}")
    while not (folder / "status.json").exists():
        time.sleep(0.02)
    time.sleep(after)
    with contextlib.suppress(ProcessLookupError):  # the run has ended
        (os.killpg if to_group else os.kill)(command.pid, number)
    done = command.wait()
    deadline = time.monotonic() + 10
    while members(command.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(command.pid) == []
    assert "Traceback" not in done.stderr, done.stderr
    status = json.loads((folder / "status.json").read_text())
    if status["state"] == "finished":
        assert done.returncode == 0
        return
    assert (done.returncode, status["state"]) == (128 + number, "interrupted"), done.stderr
    name = signal.Signals(number).name
    assert status["reason"].startswith((f"stopped by {name}", "interrupted")), status["reason"]
    if " after step " in status["reason"]:
        step = int(status["reason"].rpartition(" ")[2])
        assert step == 0 or torch.load(folder / "checkpoints" / "last.ckpt")["global_step"] == step
        assert f"stopped after step {step:,}; to resume: " in done.stderr or step == 0


def check(
    tmp_path: Path, uninterrupted: dict[int, tuple[Path, float]], number: int, num_workers: int, num_ranks: int,
    moment: float, *, to_group: bool,
) -> None:  # fmt: skip
    expected, seconds = reference(uninterrupted, num_ranks, tmp_path / "uninterrupted")
    folder = tmp_path / "stopped"
    stop(folder, number, num_workers=num_workers, num_ranks=num_ranks, after=moment * seconds, to_group=to_group)
    # A run that a signal stops before its config is complete has none; the message of resume asks to start it again.
    has_config = (folder / "config.yaml").exists()
    again = [f"resume={folder}"] if has_config else [*layout(num_workers, num_ranks), f"hydra.run.dir={folder}"]
    done = train(*again)
    assert done.returncode == 0, done.stderr
    rows, weights, pictures = outcome(folder)
    expected_rows, expected_weights, expected_pictures = outcome(expected)
    assert rows == expected_rows
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())
    assert pictures == expected_pictures


@pytest.mark.parametrize(
    ("number", "num_workers", "moment"),
    [
        pytest.param(signal.SIGINT, 2, 0.6, marks=pytest.mark.full),
        pytest.param(signal.SIGHUP, 0, 0.4, marks=pytest.mark.full),
        pytest.param(signal.SIGTERM, 0, 0, marks=pytest.mark.full),
    ],
)
def test_a_signal_to_the_group_saves_the_run_which_then_resumes_to_the_bit(
    tmp_path: Path, uninterrupted: dict[int, tuple[Path, float]], number: int, num_workers: int, moment: float
) -> None:
    check(tmp_path, uninterrupted, number, num_workers, 1, moment, to_group=True)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
@pytest.mark.full
def test_a_signal_ends_a_run_that_waits_for_a_rank_that_never_starts(tmp_path: Path, number: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rank = {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "LOCAL_RANK": "0"}
    ranks = {**rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    command = start("train.py", *layout(0, 2), f"hydra.run.dir={tmp_path / 'run'}", cwd=ROOT, **ranks)
    while f":{int(port):04X} " not in Path("/proc/net/tcp6").read_text() + Path("/proc/net/tcp").read_text():
        time.sleep(0.1)  # until it waits for the other rank
    time.sleep(0.5)
    os.kill(command.pid, number)
    started = time.monotonic()
    done = command.wait()
    assert time.monotonic() - started < 20  # without the signal it waits for 10 minutes
    assert (done.returncode, "Traceback" in done.stderr) == (128 + number, False), done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["reason"].partition(" by ")[0]) == (
        "interrupted", "interrupted" if number == signal.SIGINT else "stopped"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "num_ranks", "to_group"),
    [
        (signal.SIGINT, 1, True),
        *(pytest.param(number, 1, False, marks=pytest.mark.full) for number in NUMBERS[1:]),
        *(pytest.param(number, 2, k == 1, marks=pytest.mark.full) for number in NUMBERS for k in range(2)),
    ],
)
def test_a_signal_to_an_evaluation_gives_one_sentence(
    tmp_path: Path, uninterrupted: dict[int, tuple[Path, float]], number: int, num_ranks: int, *, to_group: bool
) -> None:
    trained, _ = reference(uninterrupted, 1, tmp_path / "uninterrupted")
    ranks = [] if num_ranks == 1 else ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={num_ranks}"]
    command = start("evaluate.py", f"run={trained}", "num_samples=5000", *ranks, f"hydra.run.dir={tmp_path / 'scored'}")
    printed = command.folder / "out"
    while not printed.exists() or "device: " not in printed.read_text():  # until all ranks have started
        time.sleep(0.1)
    time.sleep(1)
    (os.killpg if to_group else os.kill)(command.pid, number)
    done = command.wait()
    name = signal.Signals(number).name
    verb = "interrupted" if number == signal.SIGINT else "stopped"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (128 + number, f"error: {verb} by {name}.")
    assert "Traceback" not in done.stderr
    deadline = time.monotonic() + 5
    while members(command.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(command.pid) == []


def cases() -> Iterator[tuple[int, int, int, float, bool]]:
    """Ten random moments for each signal, number of workers and number of ranks; every second one to the group only."""
    generator = random.Random(0)
    for number, num_workers, num_ranks, k in itertools.product(NUMBERS, (0, 2), (1, 2), range(10)):
        yield number, num_workers, num_ranks, generator.uniform(0, 0.95), k % 5 != 4


@pytest.mark.full
@pytest.mark.parametrize(("number", "num_workers", "num_ranks", "moment", "to_group"), list(cases()))
def test_a_signal_at_any_moment_saves_the_run_which_then_resumes_to_the_bit(
    tmp_path: Path, uninterrupted: dict[int, tuple[Path, float]], number: int, num_workers: int, num_ranks: int,
    moment: float, to_group: bool,
) -> None:  # fmt: skip
    check(tmp_path, uninterrupted, number, num_workers, num_ranks, moment, to_group=to_group)

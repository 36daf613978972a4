"""Run commands of src/ in separate processes without the seconds that their imports take.

All commands are forks of a server process that has imported the package and its libraries: `command_server.py`.
"""

import csv
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

from support.processes import forked_processes

ROOT = Path(__file__).parents[2]


@cache
def _server() -> Connection:
    """Start the server, and return the end of a pipe to which requests are written."""
    from support.command_server import serve

    requests, end = multiprocessing.Pipe(duplex=False)
    costs = Path(os.environ["DIFFUSION_LAB_CACHE"]).parent / "costs"
    forked_processes().Process(target=serve, args=(requests, costs), daemon=True).start()
    return end


@dataclass(frozen=True)
class Command:
    """A running command.

    status: named pipe from which its exit status can be read when it has ended.
    """

    arguments: list[str]
    folder: Path
    pid: int
    status: TextIO

    def wait(self) -> "subprocess.CompletedProcess[str]":
        with self.status:
            code = int(self.status.readline())
        stdout, stderr = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return subprocess.CompletedProcess(self.arguments, code, stdout, stderr)


def start(script: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> Command:
    """Start `python -W error::UserWarning src/SCRIPT ARGUMENTS`.  environment: additional environment variables."""
    server, folder = _server(), Path(tempfile.mkdtemp())
    os.mkfifo(folder / "status")
    request = {
        "script": str(ROOT / "src" / script),
        "arguments": arguments,
        "cwd": str(cwd),
        "environment": {**os.environ, **environment},
        **{name: str(folder / name) for name in ("out", "err", "status")},
    }
    line = f"{json.dumps(request)}\n".encode()
    while line:
        line = line[os.write(server.fileno(), line) :]
    status = (folder / "status").open()
    return Command([script, *arguments], folder, int(status.readline()), status)


def run(script: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -W error::UserWarning src/SCRIPT ARGUMENTS`.  environment: additional environment variables."""
    return start(script, *arguments, cwd=cwd, **environment).wait()


TINY = [
    "model=unet_quick", "model.channels=8", "data.batch_size=8", "trainer.max_steps=2", "schedule.num_timesteps=8",
    "callbacks.sample_images=null", "callbacks.measure_distance=null", "trainer.precision=32-true",
]  # fmt: skip
SMALL = [
    "model=unet_quick",
    "model.channels=8",
    "data.batch_size=8",
    "data.max_images=500",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=2",
    "callbacks.sample_images.num_images=4",
    "callbacks.measure_distance.every_n_steps=2",
    "callbacks.measure_distance.sampler.num_steps=5",
    "num_samples=20",
    "sampler.num_steps=5",
]


def train(*arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run("train.py", *arguments, cwd=cwd, **environment)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))

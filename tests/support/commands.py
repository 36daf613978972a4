"""Commands of src/, each in a process of its own, without the seconds that its imports take.

One process has imported the libraries that commands need, and nothing of the package; every command is a fork of it.
"""

import atexit
import csv
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

SERVER = """
import atexit, json, os, runpy, sys, traceback
import datasets, hydra, lightning, numpy, omegaconf, PIL.Image, rich, torch, torch_fidelity, torchvision

def command(asked):
    for stream, path in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    sys.argv = [asked["script"], *asked["arguments"]]
    sys.path.insert(0, os.path.dirname(asked["script"]))
    sys.path += filter(None, asked["environment"].get("PYTHONPATH", "").split(os.pathsep))
    code = 0
    try:
        runpy.run_path(asked["script"], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    child = os.fork()
    if not child:
        command(json.loads(line))
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@cache
def _server() -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error::UserWarning", "-c", SERVER]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # read once, when the library is imported; the suite has no network
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=offline)
    atexit.register(_stop, server)
    return server


def _stop(server: "subprocess.Popen[str]") -> None:
    server.kill()
    with server:  # closes its streams, and waits for its end
        pass


def run(script: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """What `python -W error::UserWarning src/SCRIPT ARGUMENTS` comes to.  environment: beside that of the suite."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {
            "script": str(ROOT / "src" / script),
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": {**os.environ, **environment},
            "out": str(out),
            "err": str(err),
        }
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        said = [path.read_text(errors="replace") for path in (out, err)]
    return subprocess.CompletedProcess([script, *arguments], code, *said)


TINY = [
    "model=unet_quick", "model.channels=8", "data.batch_size=8", "trainer.max_steps=2", "schedule.num_timesteps=8",
    "callbacks.sample_images=null", "callbacks.measure_distance=null", "trainer.precision=32-true",
]  # fmt: skip
SMALL = [
    "model=unet_quick",
    "model.channels=8",
    "data.batch_size=8",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=2",
    "callbacks.sample_images.num_images=4",
    "callbacks.measure_distance.every_n_steps=2",
    "num_samples=20",
    "sampler.num_steps=5",
]


def train(*arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run("train.py", *arguments, cwd=cwd, **environment)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))

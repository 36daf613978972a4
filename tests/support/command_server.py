"""Run commands of src/ as forks of one process that has imported them.  `commands.py` starts it.

Every line that it receives is a request: a JSON object with script, arguments, cwd, environment, and the paths of
three files: out, err and status, a named pipe that receives the process id of the command and then its exit status.
"""

import atexit
import gc
import json
import multiprocessing
import os
import runpy
import select
import signal
import sys
import tempfile
import traceback
import warnings
import weakref
from collections.abc import Iterator
from multiprocessing import process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import hydra
import hydra._internal.hydra
import torch

from diffusion_lab.networks import Condition
from diffusion_lab.reporting import plots
from diffusion_lab.runs.cost.operations import count_operations
from support.commands import SMALL, TINY
from support.config_files import CONF, parse_once
from support.remembered_costs import remember_costs
from support.small_runs import small_module

COMPOSED: tuple[tuple[str, list[str]], ...] = (
    ("train", ["run_folder=."]), ("train", TINY), ("train", [*TINY, "conditioning=label"]), ("train", SMALL),
    ("sample", []), ("evaluate", []), ("compare", []),
)  # fmt: skip
"""Commands and overrides whose config files most tests use."""


def serve(requests: Connection, costs: Path) -> None:
    """Run the requested commands until the other end is closed.  costs: folder of remembered costs of networks."""
    os.dup2(requests.fileno(), 0)
    warnings.filterwarnings("error", category=UserWarning)
    _warm_up(costs)
    statuses = dict[int, int]()  # pipes of the running commands by their process ids
    for line in _requests(statuses):
        request = json.loads(line)
        command = os.fork()
        if not command:
            _run(request)
        statuses[command] = os.open(request["status"], os.O_WRONLY)
        os.write(statuses[command], f"{command}\n".encode())


def _requests(statuses: dict[int, int]) -> Iterator[bytes]:
    """Yield the lines of standard input; report the exit status of each command that ends in the meantime."""
    ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup)
    received = b""
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _report_ended(statuses)
        if 0 in ready:
            new = os.read(0, 65536)
            if not new:
                return
            *lines, received = (received + new).split(b"\n")
            yield from lines


def _report_ended(statuses: dict[int, int]) -> None:
    while statuses:
        command, code = os.waitpid(-1, os.WNOHANG)
        if not command:
            return
        status = statuses.pop(command)
        os.write(status, f"{os.waitstatus_to_exitcode(code)}\n".encode())
        os.close(status)


def _warm_up(costs: Path) -> None:
    """Prepare what every command needs, none of which depends on its arguments."""
    parse_once()
    # Hydra would compose each config twice, the first time only to read hydra.mode, which no test sets.
    hydra._internal.hydra.Hydra.get_mode = lambda *arguments, **options: None  # type: ignore[method-assign]
    for command, overrides in COMPOSED:  # the first time is slow
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            hydra.compose(command, overrides=overrides)
    inputs = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.float64), Condition()
    count_operations(small_module().network, inputs, 2)  # slow the first time, too; it runs without threads
    remember_costs(costs)
    with tempfile.TemporaryDirectory() as folder:
        plots.save_curves({"loss": [(1, 0.5), (2, 0.25)]}, Path(folder, "curves.png"))  # loads fonts
    for finalizer in list(vars(weakref.finalize)["_registry"]):
        finalizer.atexit = False  # libraries unregister thousands of operators at exit, one by one
    gc.collect()
    gc.freeze()  # commands search only their own objects for garbage


def _be_main_process() -> None:
    """Undo what makes this process a child of a fork server: it could not start processes, or not by a fork."""
    current = process.current_process()
    current.name = "MainProcess"
    vars(current)["_config"]["daemon"] = False
    vars(process)["_parent_process"] = None
    multiprocessing.set_start_method(None, force=True)


def _run(request: dict[str, Any]) -> NoReturn:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if the tests were started with nohup or in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _be_main_process()
    os.setpgid(0, 0)  # signals to its group reach its children, but not the tests
    for stream, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path.insert(0, os.path.dirname(request["script"]))
    sys.path += filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep))
    code = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

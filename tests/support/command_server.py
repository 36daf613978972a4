"""Run commands of src/ as forks of one process that has imported them.  `commands.py` starts it.

Every line of its standard input is a request: a JSON object with script, arguments, cwd, environment, and the paths of
three files: out, err and status, a named pipe that receives the process id of the command and then its exit status.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import traceback
from typing import Any, NoReturn

import hydra
import hydra._internal.hydra

import diffusion_lab
from support.config_files import CONF, parse_once

LIBRARIES = ("datasets", "lightning", "PIL.Image", "rich", "torch", "torch_fidelity", "torchvision")


def serve() -> None:
    _warm_up()
    for line in sys.stdin:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            _supervise(json.loads(line))


def _warm_up() -> None:
    """Import and prepare what every command needs, none of which depends on its arguments."""
    modules = [module.name for module in pkgutil.walk_packages(diffusion_lab.__path__, "diffusion_lab.")]
    for name in (*LIBRARIES, *modules):
        importlib.import_module(name)
    parse_once()
    # Hydra would compose each config twice, the first time only to read hydra.mode, which no test sets.
    hydra._internal.hydra.Hydra.get_mode = lambda *arguments, **options: None  # type: ignore[method-assign]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        hydra.compose("train", overrides=["run_folder=."])  # the first time is slow
    gc.collect()
    gc.freeze()  # commands search only their own objects for garbage


def _supervise(request: dict[str, Any]) -> NoReturn:
    command = os.fork()
    if not command:
        _run(request)
    with open(request["status"], "w") as status:
        print(command, file=status, flush=True)
        _, code = os.waitpid(command, 0)
        print(os.waitstatus_to_exitcode(code), file=status)
    os._exit(0)


def _run(request: dict[str, Any]) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if the tests were started with nohup or in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
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

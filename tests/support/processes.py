"""Processes that start with the package and its libraries already imported."""

import importlib
import multiprocessing
import os
import pkgutil
import sys
import threading
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import NoReturn
from unittest import mock

LIBRARIES = ["datasets", "lightning", "PIL.Image", "rich", "torch", "torch_fidelity", "torchvision"]


def import_everything() -> None:
    """Import all modules of the package and its libraries."""
    import diffusion_lab

    modules = [module.name for module in pkgutil.walk_packages(diffusion_lab.__path__, "diffusion_lab.")]
    with mock.patch.dict(os.environ, HF_HUB_OFFLINE="1"):  # read at import; tests have no network access
        for name in (*LIBRARIES, *modules):
            importlib.import_module(name)


@cache
def forked_processes() -> ForkServerContext:
    """Return a context whose processes are forks of one server, which imports everything when the first one starts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.everything"])
    forkserver.ensure_running()
    return context


def fork_server() -> None:
    """Let the server of `forked_processes` be a fork of this process, which imports everything for both.

    This process must not have started threads that compute.
    """
    import_everything()
    resource_tracker.ensure_running()  # in a new process
    with mock.patch("multiprocessing.util.spawnv_passfds", _fork):
        forked_processes()


def _fork(_executable: str, arguments: list[str], descriptors: list[int]) -> int:
    return os.fork() or _run_in_fork(arguments[-1], descriptors)


def _run_in_fork(code: str, descriptors: list[int]) -> NoReturn:
    """Run `code` as `python -c CODE` would: without files, hooks and locks of pytest."""
    try:
        first = 3
        for descriptor in sorted(descriptors):
            os.closerange(first, descriptor)
            first = descriptor + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
        vars(forkserver._forkserver)["_lock"] = threading.Lock()  # held while the server starts
        exec(code, {})
    finally:
        os._exit(0)

"""Processes that start with the package and its libraries already imported."""

import gc
import importlib
import multiprocessing
import os
import pkgutil
import sys
import threading
import traceback
import warnings
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
    resource_tracker.ensure_running()  # in a new process
    with warnings.catch_warnings(), mock.patch("multiprocessing.util.spawnv_passfds", _fork):
        _filter_warnings_by_default()
        import_everything()
        forked_processes()


def _filter_warnings_by_default() -> None:
    """Set the filters of a new Python process."""
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")


def _fork(_executable: str, arguments: list[str], descriptors: list[int]) -> int:
    return os.fork() or _run_in_fork(arguments[-1], descriptors)


def _run_in_fork(code: str, descriptors: list[int]) -> NoReturn:
    """Run `code` as `python -c CODE` would: without files, hooks and locks of pytest."""
    try:
        gc.enable()
        sys.meta_path[:] = [finder for finder in sys.meta_path if "pytest" not in type(finder).__module__]
        first = 3
        for descriptor in sorted(descriptors):
            os.closerange(first, descriptor)
            first = descriptor + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
        vars(forkserver._forkserver)["_lock"] = threading.Lock()  # held while the server starts
        exec(code, {})
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)

"""Processes that start with the package and its libraries already imported."""

import multiprocessing
import os
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from unittest import mock

PRELOADED = [
    "diffusion_lab.callbacks.checkpoints",
    "diffusion_lab.callbacks.restore_on_divergence",
    "diffusion_lab.data.image_datamodule",
    "diffusion_lab.evaluation.evaluator",
    "diffusion_lab.training.diffusion_module",
    "diffusion_lab.training.loggers",
    "support.command_server",
]


@cache
def forked_processes() -> ForkServerContext:
    """Return a context whose processes are forks of one server, which imports PRELOADED when the first one starts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, HF_HUB_OFFLINE="1"):  # read at import; tests have no network access
        forkserver.ensure_running()
    return context

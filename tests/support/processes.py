"""Processes that start with the package and its libraries already imported."""

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = [
    "diffusion_lab.callbacks.checkpoints",
    "diffusion_lab.callbacks.restore_on_divergence",
    "diffusion_lab.data.image_datamodule",
    "diffusion_lab.evaluation.evaluator",
    "diffusion_lab.training.diffusion_module",
    "diffusion_lab.training.loggers",
]


def forked_processes() -> ForkServerContext:
    """Return a context whose processes are forks of one server, which imports PRELOADED when the first one starts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

SLOW = {
    "cluster", "commands", "earlier_runs", "sweeps", "test_agreement", "test_architecture", "test_benchmarks",
    "test_classifier", "test_collectives", "test_compilation", "test_configs", "test_convergence", "test_damage",
    "test_edits_in_cascades", "test_efficient_net", "test_entry_points", "test_evaluator", "test_example_project",
    "test_image_cache", "test_image_files", "test_inception", "test_kill_and_resume", "test_likelihood",
    "test_loss_second_moment", "test_low_resolution_images", "test_nonfinite_guard", "test_packaging",
    "test_published_sizes", "test_ranks", "test_recipes", "test_recovery", "test_reference",
    "test_restore_on_divergence", "test_sampling_setup", "test_save_averages", "test_snapshots", "test_torchrun_names",
    "test_trained_classes", "test_training_step", "test_typed_paths",
}  # fmt: skip
"""Folders and files whose tests start processes or take seconds; `make test-fast` leaves them out."""

# derandomize: the suite answers the same on every run. No deadline: a busy machine is not a failure.
settings.register_profile("suite", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("suite")
# Otherwise examples contain constants of all imported modules of the package, so that they depend on the selection of
# tests, and each worker searches hundreds of files for constants, which takes 9 seconds.
vars(providers)["is_local_module_file"] = lambda path: False


def pytest_configure(config: pytest.Config) -> None:
    """Import what all tests need, except in the process that only hands the tests to the workers of pytest-xdist."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if config.getoption("dist", "no") != "no" and not is_worker and not config.option.collectonly:
        return

    if is_worker:
        from support.processes import fork_server

        with mock.patch.dict(os.environ, _folders(Path(config.option.basetemp).parent)):
            fork_server()

    import lightning  # noqa: F401  (before the peers: torchmetrics imports all that it finds of them, in 2 seconds)

    import diffusion_lab.config  # noqa: F401  (resolvers, for tests that compose)
    from support.config_files import parse_once

    gc.disable()  # until all tests are collected, which makes thousands of objects that stay
    # At the end: where something is in both places, the environment's own comes first.
    sys.path.append(str(Path(sys.prefix, "peers")))
    parse_once()
    # Tests read notes of the package. The option log_level would change the level for each part of each test, and each
    # change takes the time to visit the thousands of loggers of all libraries.
    logging.getLogger().setLevel(logging.INFO)


def _folders(folder: Path) -> dict[str, str]:
    """Return the variables that keep decoded sets, references and records of runs out of the folders of the user."""
    return {"DIFFUSION_LAB_CACHE": str(folder / "image_cache"), "XDG_STATE_HOME": str(folder / "state")}


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set `_folders`, and remember costs. The workers of pytest-xdist share the folders."""
    from support.remembered_costs import remember_costs  # with torch, which need not be imported to collect tests

    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    remember_costs(shared / "costs")
    with mock.patch.dict(os.environ, _folders(shared)):
        yield


def pytest_collection_finish() -> None:
    gc.enable()
    gc.collect()
    gc.freeze()  # otherwise Python searches thousands of collected tests for garbage, which takes a tenth of the time


def pytest_unconfigure() -> None:
    gc.unfreeze()  # some libraries report frozen objects as leaks at exit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {item.path.stem, item.path.parent.name} & SLOW:
            item.add_marker(pytest.mark.slow)

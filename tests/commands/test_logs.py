"""Log messages of the commands and of the package as a library."""

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion_lab.commands import logs
from support.commands import SMALL, train
from support.processes import forked_processes

logger = logging.getLogger("diffusion_lab.some.module")


@pytest.fixture(autouse=True)
def on_rank_0(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a test on rank 0, and restore the loggers after it."""
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "RANK", "SUBMITIT_LOCAL_GLOBALID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    package, root = logs.PACKAGE_LOGGER, logging.getLogger()
    before = package.handlers, package.propagate, root.level
    yield
    package.handlers, package.propagate, level = before
    root.setLevel(level)


def test_messages_are_printed_to_stderr_after_their_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logger.debug("not shown")
    logger.info("%d images", 3)
    logger.warning("a file is damaged.")
    logger.error("seed must be at least 0, got -1.")
    assert capsys.readouterr() == (
        "",
        "note: 3 images\nwarning: a file is damaged.\nerror: seed must be at least 0, got -1.\n",
    )


def test_a_message_that_is_marked_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    for number in (3, 3, 4, 3):
        logger.info("%d images", number, extra={"once": True})
        logger.warning("a warning")
    assert capsys.readouterr().err.splitlines() == [
        "note: 3 images", *["warning: a warning"] * 2, "note: 4 images", *["warning: a warning"] * 2
    ]  # fmt: skip


def test_the_level_of_the_root_logger_applies(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logging.getLogger().setLevel(logging.WARNING)
    logger.info("not shown")
    logging.getLogger().setLevel(logging.DEBUG)
    logger.debug("shown")
    assert capsys.readouterr().err == "debug: shown\n"


def test_other_ranks_print_only_errors_and_messages_of_all_ranks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.configure()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    logger.info("of rank 0")
    logger.warning("of rank 0")
    logger.info("of one rank", extra={"all_ranks": True})
    logger.error("of each rank")
    assert capsys.readouterr().err == "note: of one rank\nerror: of each rank\n"


def test_a_traceback_follows_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    try:
        raise RuntimeError("lost power")
    except RuntimeError:
        logger.exception("run-1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["error: run-1", "Traceback (most recent call last):"]
    assert lines[-1] == "RuntimeError: lost power"


def test_messages_of_a_job_are_in_its_log_file_only(tmp_path: Path) -> None:
    logs.configure()
    file = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(file)
    try:
        logger.info("before")
        with logs.job_log():
            logger.info("during")
        logger.info("after")
    finally:
        logging.getLogger().removeHandler(file)
        file.close()
    assert (tmp_path / "train.log").read_text() == "during\n"


def test_a_command_prints_a_message_once_and_writes_it_to_the_log_of_its_run(tmp_path: Path) -> None:
    overrides = [*SMALL[:3], "trainer.max_steps=1", "callbacks.sample_images=null", "callbacks.measure_distance=null"]
    done = train(*overrides, "schedule.num_timesteps=50", "hydra.verbose=true", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("schedule does not end in noise") == 1
    assert done.stderr.count("warning: schedule does not end in noise") == 1
    assert f"debug: run folder: {tmp_path}\n" in done.stderr
    log = (tmp_path / "train.log").read_text()
    assert log.count("[diffusion_lab.runs.load][WARNING] - schedule does not end in noise") == 1


def test_an_error_is_printed_even_if_logging_is_disabled(tmp_path: Path) -> None:
    done = train("data.resolution=30", "hydra/job_logging=disabled", f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: data.resolution must be divisible by 4")
    assert done.stderr.count("\n") == 1


def assert_no_logging_is_configured() -> None:
    for module in ("runs", "data", "training", "commands.train"):
        importlib.import_module(f"diffusion_lab.{module}")
    assert not any(logging.getLogger(name).handlers for name in ("", "diffusion_lab"))
    assert logging.getLogger("diffusion_lab").propagate


def test_the_package_as_a_library_configures_no_logging() -> None:
    process = forked_processes().Process(target=assert_no_logging_is_configured)
    process.start()
    process.join()
    assert process.exitcode == 0

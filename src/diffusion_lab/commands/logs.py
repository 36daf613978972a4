"""Log messages of the commands, on stderr as `note: ...`, `warning: ...` or `error: ...` and in Hydra's job log file.

The setting `logs`, which selects the folder of all run folders and job logs, is also read here.

Only commands configure logging. In a script that imports the package, the `diffusion_lab` logger has no handlers and
propagates to the root logger.
"""

import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from diffusion_lab.commands.output import outlive_reader
from diffusion_lab.config.overrides import unquote
from diffusion_lab.config.secrets import hidden
from diffusion_lab.distributed import slurm_job
from diffusion_lab.errors import UserError
from diffusion_lab.paths import LOGS_VARIABLE, expanduser
from diffusion_lab.reporting.text import message_text

PACKAGE_LOGGER = logging.getLogger("diffusion_lab")

PREFIXES = {logging.DEBUG: "debug", logging.INFO: "note", logging.WARNING: "warning"}


def take_folder() -> None:
    """Move the setting `logs` from sys.argv to the environment, so that resuming and child processes also use it.

    Raises UserError if the setting is empty or a file.
    """
    given = [argument for argument in sys.argv[1:] if re.match(r"\+*logs=", argument)]
    for argument in given:
        sys.argv.remove(argument)
        value = unquote(argument.partition("=")[2])
        folder = expanduser(value).absolute()
        if not value or folder.is_file():
            raise UserError(f"`logs` must be a folder (logs=/data/logs), got {value or 'no value'}.")
        os.environ[LOGS_VARIABLE] = str(folder)


class _PrefixFormatter(logging.Formatter):
    """Formats a record as `prefix: message`, followed by the traceback if the record has one."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{PREFIXES.get(record.levelno, 'error')}: {super().format(record)}"


def _is_shown(record: logging.LogRecord) -> bool:
    """Return whether this rank prints a record: rank 0 prints all, other ranks only errors and marked records.

    A message that may occur on any single rank is marked: it is logged with `extra={"all_ranks": True}`.
    """
    return record.levelno >= logging.ERROR or getattr(record, "all_ranks", False) or slurm_job.rank() == 0


class _Once(logging.Filter):
    """Rejects records marked with `extra={"once": True}` whose message has been printed before."""

    def __init__(self) -> None:
        super().__init__()
        self.printed: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_repeated = getattr(record, "once", False) and message in self.printed
        self.printed |= {message} if getattr(record, "once", False) else set()
        return not is_repeated


def _escape(record: logging.LogRecord) -> bool:
    """Make the control characters in a message visible, see `message_text`, and replace secrets."""
    record.msg, record.args = message_text(hidden(record.getMessage())), ()
    if record.exc_info:
        record.exc_text = hidden(logging.Formatter().formatException(record.exc_info))
    return True


def configure() -> None:
    """Print the messages of the package to stderr; see also `output.outlive_reader`.

    The root logger sets the level: INFO until Hydra changes it, so that hydra.verbose=true shows debug messages.
    """
    outlive_reader()
    _print_to_stderr()
    logging.getLogger().setLevel(logging.INFO)


def _print_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_PrefixFormatter())
    handler.addFilter(_is_shown)
    handler.addFilter(_Once())
    handler.addFilter(_escape)
    PACKAGE_LOGGER.handlers = [handler]
    PACKAGE_LOGGER.propagate = False  # Hydra's root logger prints to stdout: each message would appear twice


@contextmanager
def job_log() -> Iterator[None]:
    """Also write the messages of the package to the log file that Hydra has opened for the current job."""
    if PACKAGE_LOGGER.propagate:  # a Hydra launcher runs the job in a process that did not call `configure`
        _print_to_stderr()
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for file in files:
        file.addFilter(_escape)
        if isinstance(file.stream, io.TextIOWrapper):
            file.stream.reconfigure(errors="backslashreplace")  # the encoding may lack characters of a message
        PACKAGE_LOGGER.addHandler(file)
    try:
        yield
    finally:
        for file in files:
            PACKAGE_LOGGER.removeHandler(file)

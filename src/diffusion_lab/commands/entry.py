"""Entry point of all commands: composes the config with Hydra, runs the command, and reports errors.

An error that the user can correct is printed without a traceback. This module does not import torch or Lightning,
because these imports would delay help texts and messages about invalid settings.
"""

import atexit
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffusion_lab.commands import logs, malloc
from diffusion_lab.commands.help import print_help
from diffusion_lab.config import overrides
from diffusion_lab.config.command_line import as_hydra_arguments, flags_first
from diffusion_lab.config.compose import error_message, in_sweep, require_global_experiment
from diffusion_lab.config.finite_numbers import require_finite
from diffusion_lab.config.library_classes import with_plus
from diffusion_lab.config.search_path import with_search_path
from diffusion_lab.config.trusted_packages import take_packages
from diffusion_lab.config.typed_names import name_as_typed
from diffusion_lab.distributed import launch, signals, slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF, provide_home
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.find import with_found_guides
from diffusion_lab.runs.folder import save_overrides
from diffusion_lab.runs.output_places import require_folders
from diffusion_lab.runs.saved_progress import shared_places
from diffusion_lab.runs.settings.typed_paths import require_no_other_images
from diffusion_lab.runs.supervise import RefusedError, raise_if_full, supervise
from diffusion_lab.runs.unrecorded import require_plain_run_folder
from diffusion_lab.sweeps import plan as sweep_plan
from diffusion_lab.sweeps.plan import RunFailedError

logger = logging.getLogger(__name__)


def entry(
    config_name: str,
    command: Callable[[DictConfig], object],
    prepare_command_line: Callable[[], None] = lambda: None,
    *,
    keeps_status: bool = False,
) -> None:
    """Run `command` with the composed config of `conf/<config_name>.yaml`, once or for each run of a sweep.

    prepare_command_line: function that may change sys.argv before Hydra reads it.
    keeps_status: whether to keep a status file in each run folder, and to end a sweep with a table of all its runs.
    """
    logs.configure()
    tracebacks = _request_tracebacks()
    task = _Task(command, config_name, keeps_status=keeps_status, tracebacks=tracebacks)
    user_error = run_error = None
    try:
        with signals.raise_on_signal(_exit_after_signal):
            _run(task, prepare_command_line)
        atexit.register(signals.install, signal.SIG_IGN, signal.SIGINT)  # the result is written
    except RunFailedError as error:
        run_error = str(error)
    except StoppedBySignal as stop:
        _exit_after_signal(stop.number, is_reported=stop.is_reported)
    except Exception as error:
        user_error = None if tracebacks else _user_message(error, config_name, has_started=task.has_started)
        if user_error is None:
            raise
    sweep_error = sweep_plan.finish() if keeps_status else None
    if message := user_error or sweep_error or run_error:
        _exit_with_error(message)


class _Task:
    """The function that Hydra calls with the composed config, once or for each run of a sweep."""

    def __init__(
        self, command: Callable[[DictConfig], object], config_name: str, *, keeps_status: bool, tracebacks: bool
    ) -> None:
        self.command, self.config_name = command, config_name
        self.keeps_status, self.tracebacks = keeps_status, tracebacks
        self.has_started = False

    def run(self, config: DictConfig) -> object:
        """Run the command and return its result.  Raises RunFailedError if the command fails in a run of a sweep."""
        self.has_started = True
        folder = Path(HydraConfig.get().runtime.output_dir)
        is_new = not in_sweep() and run_status.read(folder) is None
        with logs.job_log():
            logger.debug("run folder: %s", folder)
            try:
                require_finite(config)
                require_global_experiment(config)
                require_no_other_images(config)
                require_folders(config)
                return self._run_supervised(config, folder)
            except (UserError, OmegaConfBaseException) as error:
                message = error_message(error, self.config_name)
                if is_new and not isinstance(error, RefusedError):
                    _remove_rejected_run(folder)
                if self.tracebacks:
                    raise
                if not in_sweep():
                    _exit_with_error(message)
                logger.error("%s: %s", folder.name, message)  # the other runs of the sweep continue
                raise RunFailedError(f"{folder.name}: {message}") from error
            except Exception as error:
                if not in_sweep():
                    raise
                message = f"{folder.name}: {type(error).__name__}: {error}"
                logger.exception(message)  # Hydra would show the traceback only after the complete sweep
                raise RunFailedError(message) from error

    def _run_supervised(self, config: DictConfig, folder: Path) -> object:
        if not self.keeps_status:
            try:
                return self._run_command(config)
            except Exception as error:
                raise_if_full(error, folder)
                raise
        if not isinstance(config.take_over, bool):
            raise UserError(f"take_over must be true or false, got {config.take_over}.")
        result = supervise(
            folder, lambda: self._run_command(config), in_sweep=in_sweep(), take_over=config.take_over,
            places=shared_places(config),
        )  # fmt: skip
        save_overrides(folder)
        return result

    def _run_command(self, config: DictConfig) -> object:
        with name_as_typed(config):
            return self.command(config)


def _run(task: _Task, prepare_command_line: Callable[[], None]) -> None:
    """Print the help text, or let Hydra compose the config and call `task`."""
    launch.prepare_environment()
    if note := provide_home():
        logger.info(note)
    logs.take_folder()
    take_packages()
    if print_help(task.config_name, sys.argv[1:]):
        return
    sys.argv[1:] = with_found_guides(as_hydra_arguments(task.config_name, sys.argv[1:]), task.config_name)
    overrides.require_single_choices(sys.argv[1:])
    prepare_command_line()
    if slurm_job.rank() == 0:
        require_plain_run_folder(sys.argv[1:])
    sys.argv[1:] = flags_first(sys.argv[1:])
    _prepare_process(task.config_name)
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=task.config_name)(task.run)()
    if "torch.distributed" in sys.modules:
        _leave_other_ranks()


def _leave_other_ranks() -> None:
    """End the connections to the other ranks. Their threads could abort a process that ends without this call."""
    from torch import distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _exit_after_signal(number: int, *, is_reported: bool = False) -> NoReturn:
    """End the process and the ranks that it started. It may be called while the main thread does not respond.

    is_reported: whether the way to continue has been printed.
    """
    launch.kill_new_ranks()
    if slurm_job.rank() == 0 and not is_reported:
        _log_error(f"{StoppedBySignal(number)}.")
    logging.disable()  # torch logs its caches at exit
    if threading.current_thread() is not threading.main_thread():
        os._exit(128 + number)
    sys.exit(128 + number)


def _request_tracebacks() -> bool:
    """Let Hydra raise its errors instead of printing them; return whether the user asked for full tracebacks.

    The user's choice (HYDRA_FULL_ERROR=1) is stored in DIFFUSION_LAB_TRACEBACKS for the processes that a run starts.
    """
    tracebacks = os.environ.setdefault("DIFFUSION_LAB_TRACEBACKS", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    return tracebacks == "1"


def _prepare_process(config_name: str) -> None:
    """Apply the process settings that must be in place before Hydra starts and torch is imported."""
    if slurm_job.rank() > 0:  # only rank 0 writes Hydra's files
        sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=stdout"]
    sys.argv[1:] = with_search_path(sys.argv[1:])
    overrides.export_command_line()
    sys.argv[1:] = with_plus(config_name, sys.argv[1:])
    launch.limit_threads()
    malloc.keep_freed_memory()
    _remove_other_optuna_preset()


def _remove_other_optuna_preset() -> None:
    """Remove the config of an installed hydra-optuna-sweeper, which Hydra would merge with the config in conf/."""
    Plugins.instance()
    ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)


def _user_message(error: Exception, config_name: str, *, has_started: bool) -> str | None:
    """Return the message for an error that the user can correct, or None for any other error."""
    if isinstance(error, (UserError, HydraException, OmegaConfBaseException)):
        return error_message(error, config_name)
    if isinstance(error, OSError) and not has_started:
        got = f", got {error.filename}" if error.filename else ""
        return f"hydra.run.dir (hydra.sweep.dir in a sweep) must be a writable folder{got} ({error.strerror})."
    return None


def _exit_with_error(message: str) -> NoReturn:
    _log_error(message)
    sys.exit(1)


def _log_error(message: str) -> None:
    logger.disabled = False  # hydra/job_logging=disabled disables the logger, but the final error must be printed
    logger.error(message)


def _remove_rejected_run(folder: Path) -> None:
    """Remove the folder of a run with invalid settings, if it contains only files that are written at the start."""
    files = (".hydra", run_status.LOCK, run_status.STATUS, "wandb_id")
    if slurm_job.rank() == 0 and all(path.name in files or path.suffix == ".log" for path in folder.iterdir()):
        shutil.rmtree(folder)

"""The command line: Hydra's words in, a composed config or one clear sentence out.

Torch and Lightning are not imported here: help and a refused command must not wait seconds for them.
"""

import os
import shutil
import sys
import traceback
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

from diffusion_lab.commands import malloc
from diffusion_lab.config import overrides
from diffusion_lab.config.compose import _sentence, in_sweep
from diffusion_lab.distributed import launch, slurm_job
from diffusion_lab.errors import UserError
from diffusion_lab.paths import CONF
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.folder import save_overrides
from diffusion_lab.runs.supervise import FolderInUseError, supervise
from diffusion_lab.sweeps import plan as sweep_plan


def entry(
    config_name: str,
    command: Callable[[DictConfig], object],
    prepare_command_line: Callable[[], None] = lambda: None,
    *,
    keeps_status: bool = False,
) -> None:
    """Runs `command` on the composed config of `conf/<config_name>.yaml`, as one run or as each run of a sweep.

    keeps_status: each run has a status file in its folder, and a sweep ends with a table of all.
    """
    # Hydra prints errors in its own way and ends the process; asked for full errors it raises them instead. Whether the
    # person asked for tracebacks is kept beside, for the processes that this one may start.
    tracebacks = os.environ.setdefault("DIFFUSION_LAB_TRACEBACKS", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"

    begun = False

    def run(config: DictConfig) -> object:
        nonlocal begun
        begun = True
        folder = Path(HydraConfig.get().runtime.output_dir)
        is_own = not in_sweep() and run_status.read(folder) is None  # nobody waits for it
        try:
            if not keeps_status:
                return command(config)
            result = supervise(folder, lambda: command(config), in_sweep=in_sweep())
            save_overrides(folder)
            return result
        except UserError as error:
            if is_own and not isinstance(error, FolderInUseError):
                _forget_run(folder)
            if tracebacks == "1":
                raise
            if not in_sweep():
                _end(str(error))
            print(f"error: {folder.name}: {error}", file=sys.stderr)  # the other runs of a sweep go on
            raise sweep_plan.RunFailedError(f"{folder.name}: {error}") from error
        except Exception as error:
            if not in_sweep():
                raise
            traceback.print_exc()  # Hydra keeps it to itself until the sweep is over
            raise sweep_plan.RunFailedError(f"{folder.name}: {type(error).__name__}: {error}") from error

    failure = run_failure = None
    try:
        prepare_command_line()
        _leave_files_to_the_first()
        overrides.export_command_line()
        launch.limit_threads()
        malloc.keep_freed()
        _prefer_own_search()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if tracebacks == "1":
            raise
        failure = _sentence(error, config_name)
    except OSError as error:
        if begun or tracebacks == "1":
            raise
        failure = f"hydra.run.dir must be a folder that can be written to: {error.strerror}, got {error.filename}."
    except KeyboardInterrupt:  # before training, which ends by itself between two steps
        if tracebacks == "1":
            raise
        print("interrupted.", file=sys.stderr)
        sys.exit(130)
    except sweep_plan.RunFailedError as error:
        run_failure = str(error)
    failures = sweep_plan.finish() if keeps_status else None
    if said := failure or failures or run_failure:
        _end(said)


def _leave_files_to_the_first() -> None:
    """Of the processes of a run, whoever started them, one alone writes Hydra's notes and log."""
    if slurm_job.rank() > 0:
        sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=stdout"]


def _prefer_own_search() -> None:
    """Hydra's own plugin for Optuna, where it is installed, has a preset of the name of ours, and Hydra mixes them."""
    Plugins.instance()
    ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)


def _end(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _forget_run(folder: Path) -> None:
    """Removes the folder of a run that was refused, unless there is more in it than notes of its start."""
    notes = (".hydra", run_status.LOCK, run_status.STATUS, "wandb_id")
    if slurm_job.rank() == 0 and all(path.name in notes or path.suffix == ".log" for path in folder.iterdir()):
        shutil.rmtree(folder)

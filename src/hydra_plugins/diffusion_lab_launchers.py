"""Launchers for the runs of a sweep: hydra/launcher=in_turn, local_parallel or slurm.

Hydra searches only the package hydra_plugins for launchers. All three launchers print a plan before they start any run,
skip finished runs, and rely on the status files of the runs instead of the scheduler. Torch and Lightning are not
imported here, so that a sweep starts fast.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import overrides
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.find import SWEEP
from diffusion_lab.sweeps import local as local_sweeps
from diffusion_lab.sweeps import plan as sweep_plan
from diffusion_lab.sweeps import sbatch_options
from diffusion_lab.sweeps import slurm as slurm_sweeps
from diffusion_lab.sweeps.plan import PlannedRun


class InTurn(BasicLauncher):
    """Launcher that executes the runs of a sweep sequentially in this process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        logging.getLogger(BasicLauncher.__module__).setLevel(logging.WARNING)  # it logs the overrides of each run
        sweep_plan.announce(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.config is not None
        assert self.hydra_context is not None
        planned = sweep_plan.plan(self.config, job_overrides, self.hydra_context.config_loader)
        local_sweeps.refuse_multiple_ranks(planned)
        folder = _print_plan(planned, self.config)
        left = [run for run in planned if not run.is_done and not run.is_busy]
        if self.config.hydra.job.config_name in SWEEP.commands:  # these keep a status file
            sweep_plan.mark_queued(left)
        try:
            return self._launch_each(planned, folder, initial_job_idx)
        except StoppedBySignal:
            local_sweeps.note_interruption(left)
            raise

    def _launch_each(self, planned: Sequence[PlannedRun], folder: Path, first_number: int) -> list[JobReturn]:
        returned: list[JobReturn] = []
        for number, run in enumerate(planned, first_number):
            arguments = overrides.with_sweep_name(run.overrides, folder)
            if not run.is_done:
                print(f"\nrun {number - first_number + 1} of {len(planned)}: {run.folder.name}", flush=True)
                _import_libraries()
            jobs = [] if run.is_done else super().launch([arguments], number)
            has_status = run_status.read(run.folder) is not None
            returned += [sweep_plan.job_return(run)] if has_status else jobs
        return returned


def _import_libraries() -> None:
    """Import Lightning before the first run starts, whose duration would otherwise include the import."""
    import lightning  # noqa: F401


class LocalParallel(Launcher):
    """Launcher that executes the runs of a sweep in parallel on this machine, each in a separate process."""

    def __init__(self, num_at_once: int, num_threads: int | None) -> None:
        self.num_at_once, self.num_threads = num_at_once, num_threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        local_sweeps.require_whole_numbers(self.num_at_once, self.num_threads)
        sweep_plan.announce(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        planned = sweep_plan.plan(self.config, job_overrides, self.hydra_context.config_loader)
        folder = _print_plan(planned, self.config)
        local_sweeps.run_local(planned, folder, self.num_at_once, self.num_threads)
        return [sweep_plan.job_return(run) for run in planned]


class Slurm(Launcher):
    """Launcher that submits the runs of a sweep as an array of Slurm jobs and waits for these jobs."""

    def __init__(self, **settings: Any) -> None:
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        sbatch_options.check_settings(self.settings)
        sweep_plan.announce(config)
        sweeper = str(config.hydra.sweeper._target_).rpartition(".")[2]
        if self.settings["dry_run"] and sweeper != "BasicSweeper":
            raise UserError(
                "hydra.launcher.dry_run must be false with hydra/sweeper=optuna (whose runs depend on earlier results)"
                ", got true; leave out the search space to see the batch script of one run."
            )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        planned = sweep_plan.plan(self.config, job_overrides, self.hydra_context.config_loader)
        folder = _print_plan(planned, self.config)
        slurm_sweeps.run_on_slurm(planned, folder, self.settings)
        if self.settings["dry_run"]:
            sweep_plan.forget()
        return [sweep_plan.job_return(run) for run in planned]


def _print_plan(planned: Sequence[PlannedRun], config: DictConfig) -> Path:
    """Print the plan of a sweep and return the sweep folder."""
    folder = Path(str(config.hydra.sweep.dir)).resolve()
    sweep_plan.print_plan(planned, folder)
    return folder

"""How the runs of a sweep are started: hydra/launcher=in_turn, local_parallel or slurm.

Hydra finds launchers in this package alone. All three tell what they find before they start anything, run only what is
missing, and believe the status file of a run, not the scheduler. Torch and Lightning are not imported here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config import overrides
from diffusion_lab.runs import status as run_status
from diffusion_lab.sweeps import local as local_sweeps
from diffusion_lab.sweeps import plan as sweep_plan
from diffusion_lab.sweeps import slurm as slurm_sweeps
from diffusion_lab.sweeps.plan import PlannedRun


class InTurn(BasicLauncher):
    """One run after the other, in this process."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.config is not None
        assert self.hydra_context is not None
        folder, planned = _planned(self.config, job_overrides, self.hydra_context)
        local_sweeps.refuse_multiple_ranks(planned)
        returned: list[JobReturn] = []
        for number, run in enumerate(planned, initial_job_idx):
            answers = [] if run.is_done else super().launch([overrides.with_sweep_name(run.words, folder)], number)
            keeps_status = run_status.read(run.folder) is not None
            returned += [sweep_plan.job_return(run)] if keeps_status else answers
        return returned


class LocalParallel(Launcher):
    """Some runs at once on this machine, each a process of its own."""

    def __init__(self, num_at_once: int, num_threads: int | None) -> None:
        self.num_at_once, self.num_threads = num_at_once, num_threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        folder, planned = _planned(self.config, job_overrides, self.hydra_context)
        local_sweeps.run_local(planned, folder, self.num_at_once, self.num_threads)
        return [sweep_plan.job_return(run) for run in planned]


class Slurm(Launcher):
    """One array of Slurm jobs, which this process waits for."""

    def __init__(self, **settings: Any) -> None:
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        folder, planned = _planned(self.config, job_overrides, self.hydra_context)
        slurm_sweeps.run_on_slurm(planned, folder, self.settings)
        return [sweep_plan.job_return(run) for run in planned]


def _planned(
    config: DictConfig, job_overrides: Sequence[Sequence[str]], context: HydraContext
) -> tuple[Path, list[PlannedRun]]:
    folder = Path(str(config.hydra.sweep.dir)).resolve()
    planned = sweep_plan.plan(config, job_overrides, context.config_loader)
    sweep_plan.print_plan(planned, folder)
    return folder, planned

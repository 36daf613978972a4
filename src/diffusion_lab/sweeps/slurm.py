"""Execution of the runs of a sweep as Slurm job arrays."""

import logging
import operator
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lab.config.program import interpreter_arguments
from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.sweeps import sbatch_options
from diffusion_lab.sweeps.local import run_arguments, wait_for_runs
from diffusion_lab.sweeps.plan import PlannedRun, mark_queued
from diffusion_lab.sweeps.run_report import StateReport

logger = logging.getLogger(__name__)


def run_on_slurm(planned: Sequence[PlannedRun], folder: Path, settings: dict[str, Any]) -> None:
    """Submit the remaining runs of a sweep, and wait until all runs are over, including requeued runs.

    With the setting dry_run, only print the batch scripts.  settings: settings of conf/hydra/launcher/slurm.yaml.
    Raises UserError for settings that are not accepted and for jobs that Slurm rejects.
    """
    python = sbatch_options.python_command(settings)
    for note in sbatch_options.missing_programs(settings):
        logger.info(note)
    for runs, options in _arrays(planned, folder, settings):
        if settings["dry_run"]:
            _print_script(runs, folder, options, python)
        else:
            _submit(runs, folder, options, settings)
    if settings["dry_run"]:
        if settings["prefix"]:
            print("The image of hydra.launcher.prefix must contain this package, with submitit.")
        print("dry run: nothing was submitted.", flush=True)
        return
    try:
        wait_for_runs(planned, StateReport(planned))
    except StoppedBySignal:
        logger.info("the jobs continue; run the same command again to wait for them.")
        raise


def _arrays(
    planned: Sequence[PlannedRun], folder: Path, settings: dict[str, Any]
) -> list[tuple[list[PlannedRun], dict[str, Any]]]:
    """Return the remaining runs with their sbatch options.  Runs with the same options form one job array."""
    left = [run for run in planned if not run.is_done and not run.is_busy]
    options = [sbatch_options.sbatch_options(run.trainer, settings, folder) for run in left]
    different = [option for number, option in enumerate(options) if option not in options[:number]]
    return [([run for run, own in zip(left, options, strict=True) if own == option], option) for option in different]


def _print_script(left: Sequence[PlannedRun], folder: Path, parameters: dict[str, Any], python: str) -> None:
    """Print the batch script of runs that form one job array, and the command that each array task executes."""
    from submitit.slurm import slurm as submitit_slurm

    jobs = folder / sbatch_options.JOBS / "%j"
    text = submitit_slurm._make_sbatch_string(
        f"{python} -u -m submitit.core._submit {shlex.quote(str(jobs))}",
        jobs,
        **parameters,
        map_count=len(left) if len(left) > 1 else None,
    )
    print(f"\n{text}")
    for number, run in enumerate(left):
        command = shlex.join([*interpreter_arguments(), *run_arguments(run, folder)])
        print(f"# {f'array task {number}' if len(left) > 1 else 'the job'} executes: {python} {command}")


def _submit(left: Sequence[PlannedRun], folder: Path, parameters: dict[str, Any], settings: dict[str, Any]) -> None:
    import submitit

    python = sbatch_options.python_command(settings)
    mark_queued(left)
    try:
        with _hidden_slurm_variables():
            executor = submitit.SlurmExecutor(folder / sbatch_options.JOBS / "%j", python=python)
            executor.update_parameters(**parameters)
            commands = [
                JobCommand(interpreter_arguments(), run_arguments(run, folder), str(run.folder)) for run in left
            ]
            jobs = executor.map_array(operator.call, commands)
    except (RuntimeError, ValueError, OSError, subprocess.SubprocessError, submitit.core.utils.FailedJobError) as error:
        for run in left:
            run_status.mark_not_started(run.folder, "it was not submitted")
        raise UserError(sbatch_options.refusal(_reason(error), settings)) from error
    for run, submitted in zip(left, jobs, strict=True):
        run_status.write_job_id(run.folder, submitted.job_id)
    array = jobs[0].job_id.partition("_")[0]
    print(
        f"submitted {len(jobs)} runs as Slurm job {array}; this command may be stopped and run again at any time.",
        flush=True,
    )


def _reason(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return " ".join(text.split()).rstrip(".?")[-500:]


@dataclass(frozen=True)
class JobCommand:
    """A command that runs in the process of a Slurm task, as if srun had started the command.

    program: script, or -m and a module, see `config.program.interpreter_arguments`.
    arguments: command-line arguments of the program.
    folder: run folder, as a text: the Python of a job, which unpickles this object, may have another version, in which
        the classes of paths are in another module.
    """

    program: tuple[str, ...]
    arguments: list[str]
    folder: str

    def __call__(self) -> None:
        _link_logs(Path(self.folder))
        sys.argv = [self.program[-1], *self.arguments]
        if self.program[0] == "-m":
            runpy.run_module(self.program[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(self.program[0], run_name="__main__")


def _link_logs(folder: Path) -> None:
    """Create links in a run folder to the output files of the job, which Slurm writes elsewhere."""
    import submitit

    if slurm_job.rank() > 0:
        return
    paths = submitit.JobEnvironment().paths
    for path, name in (
        (paths.stdout, f"slurm_{slurm_job.slurm_id()}.out"),
        (paths.stderr, f"slurm_{slurm_job.slurm_id()}.err"),
    ):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(path, folder))


@contextmanager
def _hidden_slurm_variables() -> Iterator[None]:
    """Hide the Slurm job variables that this process may have, because sbatch would read options from them."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if re.match(r"(SLURM_|SBATCH_)(?!CONF$)", name)}
    try:
        yield
    finally:
        os.environ.update(hidden)

"""Execution of the runs of a sweep as Slurm job arrays."""

import logging
import operator
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.program import interpreter_arguments
from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.sweeps.local import StateReport, run_arguments, wait_for_runs
from diffusion_lab.sweeps.plan import PlannedRun, mark_queued

logger = logging.getLogger(__name__)


def run_on_slurm(planned: Sequence[PlannedRun], folder: Path, settings: dict[str, Any]) -> None:
    """Submit the remaining runs of a sweep, and wait until all runs are over, including requeued runs.

    Runs with the same sbatch options form one job array.  settings: settings of conf/hydra/launcher/slurm.yaml.
    Raises UserError for settings that are not accepted and for jobs that Slurm rejects.
    """
    left = [run for run in planned if not run.is_done and not run.is_busy]
    options = [_sbatch_options(run.trainer, settings) for run in left]
    for shared in [option for number, option in enumerate(options) if option not in options[:number]]:
        _submit([run for run, option in zip(left, options, strict=True) if option == shared], folder, shared)
    try:
        wait_for_runs(planned, StateReport(planned))
    except (KeyboardInterrupt, StoppedBySignal):
        logger.info("the jobs continue; run the same command again to wait for them.")
        raise


def _submit(left: Sequence[PlannedRun], folder: Path, parameters: dict[str, Any]) -> None:
    import submitit

    for run in left:
        mark_queued(run)
    try:
        with _hidden_slurm_variables():
            executor = submitit.SlurmExecutor(folder / ".submitit" / "%j")
            executor.update_parameters(**parameters)
            commands = [JobCommand(interpreter_arguments(), run_arguments(run, folder), run.folder) for run in left]
            jobs = executor.map_array(operator.call, commands)
    except (RuntimeError, ValueError, OSError, subprocess.SubprocessError, submitit.core.utils.FailedJobError) as error:
        for run in left:
            run_status.mark_failed(run.folder, "it was not submitted")
        raise UserError(f"hydra/launcher=slurm: {_error_text(error)}") from error
    for run, submitted in zip(left, jobs, strict=True):
        run_status.write_job_id(run.folder, submitted.job_id)
    array = jobs[0].job_id.partition("_")[0]
    print(
        f"submitted {len(jobs)} runs as Slurm job {array}; this command may be stopped and run again at any time.",
        flush=True,
    )


def _error_text(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return " ".join(text.split()).rstrip(".?")[-500:] + "."


@dataclass(frozen=True)
class JobCommand:
    """A command that runs in the process of a Slurm task, as if srun had started the command.

    program: script, or -m and a module, see `config.program.interpreter_arguments`.
    arguments: command-line arguments of the program.  folder: run folder.
    """

    program: tuple[str, ...]
    arguments: list[str]
    folder: Path

    def __call__(self) -> None:
        _link_logs(self.folder)
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


def _sbatch_options(trainer: DictConfig | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return submitit's options for the settings of conf/hydra/launcher/slurm.yaml.

    Raises UserError if a setting is not accepted or contradicts the trainer.
    """
    _check_settings(settings)
    nodes, tasks, gpus = _resources(trainer, settings["nodes"], settings["gpus"])
    others = {
        "time": settings["time"],
        "signal": f"USR1@{settings['signal_before']}",
        "requeue" if settings["requeue"] else "no-requeue": True,
        "mem": settings["memory"],
        "qos": settings["qos"],
    } | (settings["more"] or {})
    options = {
        "job_name": settings["name"],
        "partition": settings["partition"],
        "account": settings["account"],
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "gpus_per_node": gpus or None,
        "cpus_per_task": settings["cpus"],
        "array_parallelism": settings["num_at_once"],
        "setup": settings["setup"] or None,
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {name: value for name, value in others.items() if value is not None},
    }
    return {name: value for name, value in options.items() if value is not None}


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise UserError for settings of conf/hydra/launcher/slurm.yaml that are not accepted."""
    for name in ("signal_before", "num_at_once"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise UserError(f"hydra.launcher.{name} must be a whole number of at least 1, got {settings[name]}.")
    for name in ("nodes", "gpus", "cpus"):
        value, least = settings[name], 0 if name == "gpus" else 1
        if value is not None and not (isinstance(value, int) and value >= least):
            raise UserError(f"hydra.launcher.{name} must be a whole number of at least {least}, or null, got {value}.")
    collections = ("setup", list, "a list of shell commands"), ("more", dict, "options of sbatch such as {exclude: n7}")
    for name, kind, accepted in collections:
        if not isinstance(settings[name] or kind(), kind):
            raise UserError(f"hydra.launcher.{name} must be {accepted}, got {settings[name]}.")
    time = str(settings["time"])
    if not re.fullmatch(r"[1-9]\d*|(\d+-)?\d+(:\d+){0,2}", time) or time == "0":
        raise UserError(
            f"hydra.launcher.time must be a number of minutes, or a time like 12:00:00 or 2-00:00:00, got {time}."
        )


def _resources(trainer: DictConfig | None, nodes: int | None, gpus: int | None) -> tuple[int, int, int | None]:
    """Return the number of nodes of a job, of tasks per node (one for each rank) and of GPUs per node.

    nodes, gpus: settings of the launcher; None selects the value of the trainer.
    Raises UserError if the numbers of nodes or devices differ between the launcher and the trainer.
    """
    defaults: dict[str, Any] = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"}
    trainer_settings = defaults | dict(trainer or {})
    devices, accelerator = trainer_settings["devices"], trainer_settings["accelerator"]
    num_nodes = trainer_settings["num_nodes"]
    num_devices = len(devices) if OmegaConf.is_list(devices) else devices
    if not isinstance(num_devices, int) or num_devices <= 0:  # the trainer uses as many ranks as the job has tasks
        return nodes or num_nodes, gpus or 1, gpus
    if gpus and accelerator != "cpu" and num_devices != gpus:
        raise UserError(
            f"hydra.launcher.gpus must equal trainer.devices ({num_devices}, with one GPU per rank), got {gpus}."
        )
    if nodes is not None and nodes != num_nodes:
        raise UserError(f"hydra.launcher.nodes must equal trainer.num_nodes ({num_nodes}), got {nodes}.")
    return num_nodes, num_devices, num_devices if gpus is None and accelerator in ("gpu", "cuda") else gpus

"""The runs of a sweep as an array of Slurm jobs."""

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

from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.sweeps.local import Report, script, single, wait
from diffusion_lab.sweeps.plan import PlannedRun, mark_queued


def run_on_slurm(planned: Sequence[PlannedRun], folder: Path, settings: dict[str, Any]) -> None:
    """Submits what is left of a sweep, and waits until all of it is over, restarts included.

    One array of jobs; runs of other numbers of processes are another.
    """
    left = [run for run in planned if not run.is_done and not run.is_busy]
    options = [_sbatch(run.trainer, settings) for run in left]
    for same in [option for number, option in enumerate(options) if option not in options[:number]]:
        _submit([run for run, option in zip(left, options, strict=True) if option == same], folder, same)
    try:
        wait(planned, Report(planned))
    except (KeyboardInterrupt, StoppedBySignal):
        print("the jobs go on; the same command waits for them again.", file=sys.stderr, flush=True)
        raise


def _submit(left: Sequence[PlannedRun], folder: Path, parameters: dict[str, Any]) -> None:
    import submitit

    for run in left:
        mark_queued(run)
    try:
        with _without_this_job():
            executor = submitit.SlurmExecutor(folder / ".submitit" / "%j")
            executor.update_parameters(**parameters)
            commands = [JobCommand(script(), single(run, folder), run.folder) for run in left]
            jobs = executor.map_array(operator.call, commands)
    except (RuntimeError, ValueError, OSError, subprocess.SubprocessError, submitit.core.utils.FailedJobError) as error:
        for run in left:
            run_status.mark_failed(run.folder, "it was not submitted")
        raise UserError(f"hydra/launcher=slurm: {_reason(error)}") from error
    for run, submitted in zip(left, jobs, strict=True):
        run_status.write_job_id(run.folder, submitted.job_id)
    array = jobs[0].job_id.partition("_")[0]
    print(f"submitted {len(jobs)} runs as Slurm job {array}; this command may be stopped and given again.", flush=True)


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    said = said.decode(errors="replace") if isinstance(said, bytes) else said
    return " ".join(said.split()).rstrip(".?")[-500:] + "."


@dataclass(frozen=True)
class JobCommand:
    """A command of this product, done in the process of a Slurm task as srun would do it."""

    script: Path
    words: list[str]
    folder: Path

    def __call__(self) -> None:
        _show_logs_in(self.folder)
        sys.argv = [str(self.script), *self.words]
        runpy.run_path(str(self.script), run_name="__main__")


def _show_logs_in(folder: Path) -> None:
    """Links what the job says, which Slurm writes elsewhere, into the folder of its run."""
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
def _without_this_job() -> Iterator[None]:
    """Hides that this process is a part of a Slurm job itself: sbatch takes its options from the environment too."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if re.match(r"(SLURM_|SBATCH_)(?!CONF$)", name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _sbatch(trainer: DictConfig | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The options of sbatch for the plain words of conf/hydra/launcher/slurm.yaml.  Raises UserError."""
    words = dict(settings)
    for name in ("signal_before", "num_at_once"):
        if not isinstance(words[name], int) or words[name] < 1:
            raise UserError(f"hydra.launcher.{name} must be a whole number of at least 1, got {words[name]}.")
    for name in ("nodes", "gpus", "cpus"):
        if not (words[name] is None or (isinstance(words[name], int) and words[name] >= (name != "gpus"))):
            raise UserError(f"hydra.launcher.{name} must be a whole number, or null, got {words[name]}.")
    for name, kind, shown in (("setup", list, "a list of shell commands"), ("more", dict, "options: {exclude: n7}")):
        if not isinstance(words[name] or kind(), kind):
            raise UserError(f"hydra.launcher.{name} must be {shown}, got {words[name]}.")
    if not re.fullmatch(r"[1-9]\d*|(\d+-)?\d+(:\d+){0,2}", str(words["time"])) or str(words["time"]) == "0":
        raise UserError(f"hydra.launcher.time must be minutes, or as 12:00:00 or 2-00:00:00, got {words['time']}.")
    nodes, tasks, gpus = _layout(trainer, words["nodes"], words["gpus"])
    others = {
        "time": words["time"],
        "signal": f"USR1@{words['signal_before']}",
        "requeue" if words["requeue"] else "no-requeue": True,
        "mem": words["memory"],
        "qos": words["qos"],
    } | (words["more"] or {})
    options = {
        "job_name": words["name"],
        "partition": words["partition"],
        "account": words["account"],
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "gpus_per_node": gpus or None,
        "cpus_per_task": words["cpus"],
        "array_parallelism": words["num_at_once"],
        "setup": words["setup"] or None,
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {name: value for name, value in others.items() if value is not None},
    }
    return {name: value for name, value in options.items() if value is not None}


def _layout(trainer: DictConfig | None, nodes: int | None, gpus: int | None) -> tuple[int, int, int | None]:
    """Nodes, tasks on each and GPUs on each of a job, one task a process of the trainer.  Raises UserError."""
    layout: dict[str, Any] = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"} | dict(trainer or {})
    devices, accelerator = layout["devices"], layout["accelerator"]
    asked = len(devices) if OmegaConf.is_list(devices) else devices
    if not isinstance(asked, int) or asked <= 0:  # as many as will be started
        return nodes or layout["num_nodes"], gpus or 1, gpus
    if gpus and accelerator != "cpu" and asked != gpus:
        raise UserError(f"hydra.launcher.gpus must be trainer.devices={asked}, one for each process, got {gpus}.")
    if nodes is not None and nodes != layout["num_nodes"]:
        raise UserError(f"hydra.launcher.nodes must be trainer.num_nodes={layout['num_nodes']}, got {nodes}.")
    return layout["num_nodes"], asked, asked if gpus is None and accelerator in ("gpu", "cuda") else gpus

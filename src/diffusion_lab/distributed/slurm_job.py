"""Job and rank of this process, read from the environment variables of Slurm, torchrun, submitit or Lightning.

A launch is recognized by a variable that only its launcher sets. Without one, variables such as RANK are ignored.
This module imports only the standard library and `errors`, because commands use it before they import torch.
"""

import getpass
import logging
import os
import re
import shutil
import subprocess
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from diffusion_lab.errors import UserError

logger = logging.getLogger(__name__)

REQUEUE_FILE = "DIFFUSION_LAB_REQUEUE_FILE"
"""Environment variable with the path of a file through which a run in a container asks its batch script to requeue it.

The run writes the job id to the file if `scontrol` does not work in the container. The batch script, which runs outside
of the container, requeues the job when srun has ended and the file exists.
"""

LIGHTNING_PARENT = "DIFFUSION_LAB_LIGHTNING_PARENT"
"""Environment variable of a rank that Lightning started: the process id of rank 0, which started this rank."""

DATE = "%Y-%m-%d_%H-%M-%S-%f"
"""Format of the date and time in the name of a run folder. A shell can start several runs in the same second."""

DEFAULT_RUN_ID = r"none|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Regular expression of the run ids of torchrun without --rdzv-id; with --standalone, torchrun uses a UUID."""


def in_slurm_step() -> bool:
    """Return whether srun started this process. A shell in a job is not a step."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def started_by_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_local_submitit() -> bool:
    """Return whether submitit started this process on this machine, without Slurm."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "local" and "SUBMITIT_LOCAL_NTASKS" in os.environ


def started_by_lightning() -> bool:
    """Return whether Lightning started this process as a rank other than 0."""
    return LIGHTNING_PARENT in os.environ


def rank() -> int:
    """Return the rank of this process, started by any launcher; 0 for a single process.

    Raises UserError if the launcher's variable is not a rank.
    """
    if started_by_torchrun():  # first: srun may start one torchrun per node
        return number("RANK")
    if in_slurm_step():
        return number("SLURM_PROCID")
    if started_by_local_submitit():
        return number("SUBMITIT_LOCAL_GLOBALID")
    return number("LOCAL_RANK") if started_by_lightning() else 0


def number(name: str, least: int = 0) -> int:
    """Return the whole number in an environment variable.  Raises UserError unless it is at least `least`."""
    value = os.environ.get(name, "")
    if not value.isascii() or not value.isdigit() or int(value) < least:
        raise UserError(
            f"the environment variable {name}, which the launcher sets, must be a whole number of at least {least}, "
            f"got {value or 'no value'}."
        )
    return int(value)


def world_size() -> int:
    """Return the number of ranks that torchrun or srun started for this run, or 1 for any other run."""
    if started_by_torchrun():
        return number("WORLD_SIZE", 1)
    return number("SLURM_STEP_NUM_TASKS", 1) if in_slurm_step() and "SLURM_STEP_NUM_TASKS" in os.environ else 1


def slurm_id() -> str | None:
    """Return the id of the Slurm job, for example 17, or 17_3 in an array; None outside of Slurm."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def job_name() -> str:
    """Return the default name of the run folder, identical on all ranks of a job and after each restart of the job.

    In a Slurm job, the name is slurm_JOB for step 0 (the first srun) or without srun, and slurm_JOB.STEP for later
    steps: slurm_17.2 for the third srun of job 17. In an interactive Slurm job with one rank and outside of Slurm, the
    name is torchrun_ID if torchrun was started with --rdzv-id=ID. Otherwise it is a date and time: of the start of
    torchrun, or of the first call without torchrun.
    """
    if (job_id := slurm_id()) and not _in_interactive_job():
        step = int(os.environ.get("SLURM_STEP_ID", 0)) if in_slurm_step() else 0
        return f"slurm_{job_id}" + (f".{step}" if step else "")
    if started_by_torchrun():
        run_id = os.environ["TORCHELASTIC_RUN_ID"]
        return _start_time_of_torchrun() if re.fullmatch(DEFAULT_RUN_ID, run_id) else f"torchrun_{run_id}"
    return _start_time()


@cache  # the config is resolved more than once: Lightning starts other ranks with the folder that it resolves later
def _start_time() -> str:
    return datetime.now().strftime(DATE)


@cache
def _start_time_of_torchrun() -> str:
    """Return the same date and time on all ranks, also on ranks that torchrun starts again after a failure.

    On a single node, it is the start of the parent of all ranks. Its last four digits are those of the process id,
    because Linux measures the start with two decimals. On several nodes, all ranks use the time of the first rank.
    """
    ticks, booted = start_ticks(os.getppid()), _boot_time()
    if world_size() == number("LOCAL_WORLD_SIZE", 1) and ticks is not None and booted is not None:
        seconds, rest = divmod(ticks, os.sysconf("SC_CLK_TCK"))
        hundredths = rest * 100 // os.sysconf("SC_CLK_TCK")
        date = datetime.fromtimestamp(booted + seconds)
        return date.replace(microsecond=hundredths * 10_000 + os.getppid() % 10_000).strftime(DATE)
    address, port = os.environ.get("MASTER_ADDR", ""), number("MASTER_PORT", 1)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return f"torchrun_{address}_{port}"
    from torch import distributed

    try:
        store: Any = distributed.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
        return str(store.compare_set("diffusion_lab/start_time", "", _start_time()).decode())  # set by the first rank
    except distributed.DistError as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")[:150]
        raise UserError(f"torchrun: no rank 0 at {address}:{port} (MASTER_ADDR, MASTER_PORT): {reason}.") from error


def _boot_time() -> int | None:
    """Return the time at which this machine was started, in seconds since 1970, or None if it is unknown."""
    try:
        return next(int(line[6:]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, StopIteration):
        return None


def _in_interactive_job() -> bool:
    """Return whether this single-rank command was typed into a shell in a job, which can run several commands."""
    shell = os.environ.get("SLURM_JOB_NAME")
    by_salloc, by_srun = shell == "interactive" and not in_slurm_step(), shell in ("sh", "bash", "zsh", "fish")
    return world_size() == 1 and (by_salloc or by_srun)


def start_ticks(pid: int) -> int | None:
    """Return the start time of a process in kernel ticks, or None if the process has ended.

    The start time distinguishes processes with the same pid.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def requeue() -> str | None:
    """Requeue this job. Return None if Slurm accepts the request, and the reason if Slurm does not accept it."""
    job_id = slurm_id()
    if job_id is None:
        return "there is no Slurm job to requeue"
    if shutil.which("scontrol") is None:
        return f"scontrol requeue {job_id}: the program is not on PATH; for a container, see docs/cluster.md"
    try:
        done = subprocess.run(["scontrol", "requeue", job_id], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol requeue {job_id}: {error}"
    return None if done.returncode == 0 else f"scontrol requeue {job_id}: {' '.join(done.stderr.split())}"


def request_requeue() -> bool:
    """Ask the batch script of this job to requeue it, see `REQUEUE_FILE`.

    Returns False if the variable is not set, or if the file cannot be written.
    """
    job_id, path = slurm_id(), os.environ.get(REQUEUE_FILE)
    if job_id is None or not path:
        return False
    try:
        Path(path).write_text(f"{job_id}\n")
    except OSError as error:
        logger.warning("%s must be a writable file, got %s: %s", REQUEUE_FILE, path, error.strerror)
        return False
    return True


class SlurmQueue:
    """The Slurm queue, queried once."""

    def __init__(self) -> None:
        self._states: dict[str, str] | None = None
        self._queried = False

    def states(self) -> dict[str, str] | None:
        """Return the state of each pending or running job of the user by job id, or None if Slurm is not available."""
        if not self._queried:
            self._queried = True
            self._states = _query("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i %T")
        return self._states

    def final_state(self, job_id: str) -> str | None:
        """Return the last state of a job that is not in the queue, or "unknown to Slurm".

        Returns None if the job is in the queue or Slurm is not available.
        """
        states = self.states()
        if states is None or job_id in states:
            return None
        array = job_id.partition("_")[0]
        accounts = _query("sacct", "-n", "-X", "-j", array, "-o", "JobID%400,State%40") or {}
        # Tasks of an array that never started have one common row: 17_[2-9%4].
        of_array = next((state for name, state in accounts.items() if name.startswith(f"{array}_[")), "")
        state = accounts.get(job_id, of_array).removesuffix("+")
        if state in ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "COMPLETING"):
            return None  # squeue and sacct are not synchronized
        return state or "unknown to Slurm"


def _query(*command: str) -> dict[str, str] | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    fields = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {pair[0]: pair[1].strip() for pair in fields if len(pair) == 2}

"""The job that this process is a part of, as Slurm, torchrun or Lightning tell it in the environment.

Nothing but the standard library is imported here: a job is known before torch is loaded.
"""

import getpass
import os
import subprocess
from datetime import datetime
from pathlib import Path


def in_slurm_step() -> bool:
    """Whether srun started this process, and not a shell of the job."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """Of this process among those of its run, whoever started them; 0 for one alone."""
    if in_slurm_step():
        return int(os.environ["SLURM_PROCID"])
    for name in (
        "RANK",
        "SUBMITIT_LOCAL_GLOBALID",
        "LOCAL_RANK",
    ):  # of torchrun, submitit and Lightning's one machine
        if name in os.environ:
            return int(os.environ[name])
    return 0


def world_size() -> int:
    """How many processes torchrun or srun started for this run; 1 where neither did."""
    if started_by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if in_slurm_step() else 1


def slurm_id() -> str | None:
    """Of the Slurm job, 17 or, in an array, 17_3; None outside of Slurm."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def job_name() -> str:
    """A name for what the job writes, the same in all of its processes and after each of its restarts.

    slurm_17, with .2 for the third command that its script gives to srun; or torchrun's; or the moment of the start.
    """
    if (identity := slurm_id()) and not _typed_in_a_job():
        step = int(os.environ.get("SLURM_STEP_ID", 0)) if in_slurm_step() else 0
        return f"slurm_{identity}" + (f".{step}" if step else "")
    if started_by_torchrun():
        run_id = os.environ["TORCHELASTIC_RUN_ID"]
        # Without an identity of its own the run has torchrun itself: it is the parent of all workers of a machine.
        return f"torchrun_{run_id}" if run_id != "none" else f"torchrun_{os.getppid()}_{start_ticks(os.getppid())}"
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def _typed_in_a_job() -> bool:
    """Whether somebody gave this command to a shell inside a job, who may give it many others."""
    shell = os.environ.get("SLURM_JOB_NAME")
    by_salloc, by_srun = shell == "interactive" and not in_slurm_step(), shell in ("sh", "bash", "zsh", "fish")
    return world_size() == 1 and (by_salloc or by_srun)


def start_ticks(pid: int) -> int | None:
    """When a process began, in the kernel's ticks: another one with its number has others. None where none runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def requeue() -> str | None:
    """Asks Slurm to start this job again from its top; why it will not, in a sentence, or None where it will."""
    identity = slurm_id()
    if identity is None:
        return "there is no Slurm job to start again"
    try:
        done = subprocess.run(["scontrol", "requeue", identity], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol requeue {identity}: {error}"
    return None if done.returncode == 0 else f"scontrol requeue {identity}: {' '.join(done.stderr.split())}"


class SlurmQueue:
    """Slurm's queue at one moment, asked for once."""

    def __init__(self) -> None:
        self._states: dict[str, str] | None = None
        self._asked = False

    def states(self) -> dict[str, str] | None:
        """The state of each job of this person that is not over; None where Slurm does not answer."""
        if not self._asked:
            self._asked = True
            self._states = _asked("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i %T")
        return self._states

    def why_gone(self, identity: str) -> str | None:
        """Why a job is not in the queue, in Slurm's words; None where it is there, or Slurm does not answer."""
        states = self.states()
        if states is None or identity in states:
            return None
        told = _asked("sacct", "-n", "-X", "-j", identity, "-o", "JobID%40,State%40") or {}
        state = told.get(identity, "").removesuffix("+")
        if state in ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "COMPLETING"):
            return None  # one of the two lags behind
        return f"job {identity} ended without a word: {state or 'Slurm knows nothing of it'}"


def _asked(*command: str) -> dict[str, str] | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    words = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {pair[0]: pair[1].strip() for pair in words if len(pair) == 2}

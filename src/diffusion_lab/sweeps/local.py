"""Execution of the runs of a sweep as processes on this machine.

`wait_for_runs` also waits for runs on other machines.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffusion_lab.config.overrides import quote, with_sweep_name
from diffusion_lab.config.program import interpreter_arguments
from diffusion_lab.config.search_path import search_path_overrides
from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.distributed.slurm_job import SlurmQueue
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.job_output import last_lines
from diffusion_lab.runs.status import FINISHED, QUEUED
from diffusion_lab.sweeps.plan import PlannedRun, mark_queued
from diffusion_lab.sweeps.progress import OUTPUT
from diffusion_lab.sweeps.run_report import RunReport, StateReport

logger = logging.getLogger(__name__)


def refuse_multiple_ranks(planned: Sequence[PlannedRun]) -> None:
    """Raise UserError if a run has several ranks, which a sweep in a single process (in_turn) does not support.

    Lightning starts the other ranks with the command line of rank 0. In such a sweep, this is the command line of the
    sweep, so the other ranks would start other runs.
    """
    world_size = slurm_job.world_size()
    trainers = [run.trainer for run in planned if run.trainer is not None]
    devices = max((_num_devices(trainer.get("devices", 1)) for trainer in trainers), default=1)
    if devices > 1 or world_size > 1:
        got = f"trainer.devices={devices}" if world_size == 1 else f"{world_size} ranks started by torchrun or srun"
        raise UserError(
            f"hydra/launcher=in_turn needs runs with a single rank, got {got}; use hydra/launcher=slurm or "
            "hydra/launcher=local_parallel, which start separate processes for each run, or set trainer.devices=1."
        )


def _num_devices(devices: Any) -> int:
    """Return the number of ranks that a trainer starts on this machine.  devices: value of trainer.devices."""
    if OmegaConf.is_list(devices):
        return len(devices)
    if isinstance(devices, int) and devices >= 0:
        return max(1, devices)  # the run itself rejects 0
    if isinstance(devices, str) and devices.isdigit():
        return max(1, int(devices))
    return max(1, len(_gpus()))


def _gpus() -> list[str]:
    """Return the indices of the GPUs that this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [number for number in visible.split(",") if number.strip() not in ("", "-1")]
    found = sorted(Path("/dev").glob("nvidia[0-9]*"), key=lambda path: int(path.name[6:]))
    return [path.name[6:] for path in found]


@dataclass
class _Child:
    run: PlannedRun
    process: subprocess.Popen[bytes]


def require_whole_numbers(num_at_once: Any, num_threads: Any) -> None:
    """Raise UserError unless both settings of hydra/launcher=local_parallel are accepted."""
    for name, value in {"num_at_once": num_at_once, "num_threads": 1 if num_threads is None else num_threads}.items():
        if type(value) is not int or value < 1:
            raise UserError(f"hydra.launcher.{name} must be a whole number of at least 1, got {value}.")


def run_local(planned: Sequence[PlannedRun], folder: Path, num_at_once: int, num_threads: int | None) -> None:
    """Start the remaining runs of a sweep as processes on this machine, and wait for all runs of the sweep.

    num_at_once: number of parallel runs. If there are at least as many GPUs, each run has its own GPUs.
    num_threads: number of CPU threads of each run; None divides the cores equally among the parallel runs.
    """
    left = [run for run in planned if not run.is_done and not run.is_busy]
    mark_queued(left)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = num_threads or cores // max(1, min(num_at_once, len(left)))
    slots: list[_Child | None] = [None] * num_at_once
    report = RunReport(planned)
    try:
        while left or any(slots):
            for number, child in enumerate(slots):
                if child is not None and child.process.poll() is not None:
                    _mark_failed_if_killed(child)
                    slots[number] = None
                if slots[number] is None and left:
                    run = left.pop(0)
                    slots[number] = _Child(run, _start(run, folder, number, num_at_once, threads))
            report.update()
            time.sleep(0.2)
    except StoppedBySignal as stop:
        _stop([child for child in slots if child is not None], stop.number)
        note_interruption(left)
        stop.is_reported = True
        raise
    wait_for_runs(planned, report)


def note_interruption(planned: Sequence[PlannedRun]) -> None:
    """Record which of the runs were not started, and log how the sweep continues."""
    for run in planned:
        if (status := run_status.read(run.folder)) is not None and status.state == QUEUED:
            run_status.mark_not_started(run.folder, "the sweep was interrupted")
    logger.info("the sweep was interrupted; the same command continues it.")


def _start(run: PlannedRun, folder: Path, slot: int, num_slots: int, threads: int) -> "subprocess.Popen[bytes]":
    threads_per_rank = max(1, threads // _num_devices(1 if run.trainer is None else run.trainer.get("devices", 1)))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_per_rank)}
    gpus = _gpus()
    if len(gpus) >= num_slots:
        num_gpus = len(gpus) // num_slots
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot * num_gpus : (slot + 1) * num_gpus])
    with (run.folder / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *interpreter_arguments(), *run_arguments(run, folder)],
            env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def _mark_failed_if_killed(child: _Child) -> None:
    """Mark the run of an ended process as failed if the process could not write the status file itself."""
    status = run_status.reconcile(child.run.folder)
    if status is None or status.state == QUEUED:  # in any other state, another process has worked on the run
        end = last_lines(child.run.folder / OUTPUT)
        reason = f"its process ended with exit status {child.process.returncode}{f'; {end}' if end else ''} ({OUTPUT})"
        run_status.mark_failed(child.run.folder, reason)


def _stop(children: Sequence[_Child], number: int) -> None:
    """Stop all runs, each after its current step, and wait until they end.  number: signal that this process received.

    A run receives SIGINT or SIGTERM. After SIGUSR1, each run would requeue the Slurm job of this process.
    """
    logger.info("stopping %d runs, each after its current step.", len(children))
    for child in children:
        child.process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
    for child in children:
        child.process.wait()


def run_arguments(run: PlannedRun, folder: Path) -> list[str]:
    """Return the command-line arguments that start a run of the sweep in `folder` as a separate command."""
    overrides = [*with_sweep_name(run.overrides, folder), *search_path_overrides()]
    return [*overrides, f"hydra.run.dir={quote(str(run.folder))}"]


def wait_for_runs(planned: Sequence[PlannedRun], report: StateReport) -> None:
    """Wait until all runs have ended.

    For a failed run, also wait until its Slurm job has ended, because Slurm may start the job again.
    """
    pause = 0.5
    while True:
        jobs = SlurmQueue()
        remaining = [run for run in planned if not _is_over(run, jobs)]
        report.update()
        if not remaining:
            return
        time.sleep(pause)
        pause = min(10.0, pause * 1.2)


def _is_over(run: PlannedRun, queue: SlurmQueue) -> bool:
    status = run_status.reconcile(run.folder, queue)
    if status is None or status.silent_since is not None:
        return True
    if status.state == FINISHED or not status.is_over:
        return status.is_over
    job_id = status.starts[-1].slurm_id if status.starts else run_status.job_id(run.folder)
    states = queue.states() if job_id is not None else {}
    return states is not None and job_id not in states

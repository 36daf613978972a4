"""The runs of a sweep as processes of this machine, and the wait for runs wherever they are."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from diffusion_lab.config.overrides import quote, with_sweep_name
from diffusion_lab.distributed import slurm_job
from diffusion_lab.distributed.signals import StoppedBySignal
from diffusion_lab.distributed.slurm_job import SlurmQueue
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.status import FINISHED, QUEUED
from diffusion_lab.sweeps.plan import PlannedRun, mark_queued

OUTPUT = "output.log"


def refuse_multiple_ranks(planned: Sequence[PlannedRun]) -> None:
    """Raises UserError where the runs of a sweep in one process would be runs of several processes.

    Lightning starts the others by the command of the first, and that is the whole sweep: they would train other runs.
    """
    started = slurm_job.world_size()
    devices = max((_count(run.trainer.get("devices", 1)) for run in planned if run.trainer is not None), default=1)
    if devices > 1 or started > 1:
        got = f"trainer.devices={devices}" if started == 1 else f"{started} processes of torchrun or srun"
        raise UserError(
            "a sweep in one process cannot have runs of several: say hydra/launcher=slurm or "
            "hydra/launcher=local_parallel, which give each run its own processes, or trainer.devices=1, got "
            f"{got}."
        )


def _count(devices: Any) -> int:
    """How many processes a trainer starts on this machine."""
    if OmegaConf.is_list(devices):
        return len(devices)
    if isinstance(devices, int) and devices >= 0:
        return max(1, devices)  # none is refused by the run itself
    if isinstance(devices, str) and devices.isdigit():
        return max(1, int(devices))
    return max(1, len(_gpus()))


def _gpus() -> list[str]:
    """The GPUs that this process may use, by their numbers."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [number for number in visible.split(",") if number.strip() not in ("", "-1")]
    found = sorted(Path("/dev").glob("nvidia[0-9]*"), key=lambda path: int(path.name[6:]))
    return [path.name[6:] for path in found]


@dataclass
class _Child:
    run: PlannedRun
    process: subprocess.Popen[bytes]


def run_local(planned: Sequence[PlannedRun], folder: Path, num_at_once: int, num_threads: int | None) -> None:
    """Runs what is left of a sweep as processes of this machine, so many at once; waits for all.

    num_threads: of each run; None shares the cores. Each run has GPUs of its own where there are enough.
    """
    for name, value in {"num_at_once": num_at_once, "num_threads": num_threads or 1}.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"hydra.launcher.{name} must be a whole number of at least 1, got {value}.")
    left = [run for run in planned if not run.is_done and not run.is_busy]
    for run in left:
        mark_queued(run)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = max(1, min(num_at_once, len(left)))
    slots: list[_Child | None] = [None] * num_at_once
    report = Report(planned)
    try:
        while left or any(slots):
            for number, child in enumerate(slots):
                if child is not None and child.process.poll() is not None:
                    _note_end(child)
                    slots[number] = None
                if slots[number] is None and left:
                    run = left.pop(0)
                    slots[number] = _Child(
                        run, _started(run, folder, number, num_at_once, num_threads or cores // shares)
                    )
            report.tell()
            time.sleep(0.2)
    except (KeyboardInterrupt, StoppedBySignal):
        _stop([child for child in slots if child is not None])
        raise
    wait(planned, report)


def _started(run: PlannedRun, folder: Path, slot: int, num_slots: int, threads: int) -> "subprocess.Popen[bytes]":
    own = max(1, threads // _count(1 if run.trainer is None else run.trainer.get("devices", 1)))
    environment = {**os.environ, "OMP_NUM_THREADS": str(own)}
    gpus = _gpus()
    if len(gpus) >= num_slots:
        share = len(gpus) // num_slots
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot * share : (slot + 1) * share])
    with (run.folder / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(script()), *single(run, folder)],
            env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def _note_end(child: _Child) -> None:
    """A process that was killed could not say so."""
    status = run_status.reconcile(child.run.folder)
    if status is None or status.state == QUEUED:  # one that runs does so in another process, which was there before
        code = child.process.returncode
        run_status.mark_failed(child.run.folder, f"its process ended with status {code}; {OUTPUT} says more")


def _stop(children: Sequence[_Child]) -> None:
    """Ends runs as Ctrl-C would, each after its step, and waits for them."""
    print(f"stopping {len(children)} runs, each after its step.", file=sys.stderr, flush=True)
    for child in children:
        child.process.terminate()
    for child in children:
        child.process.wait()


def script() -> Path:
    return Path(sys.argv[0]).resolve()


def single(run: PlannedRun, folder: Path) -> list[str]:
    """The words of a run as a command of its own, of the script that the sweep was given to."""
    return [*with_sweep_name(run.words, folder), f"hydra.run.dir={quote(str(run.folder))}"]


class Report:
    """Says how many runs of a sweep are in which state, whenever that changes."""

    def __init__(self, planned: Sequence[PlannedRun]) -> None:
        self.planned, self.last = planned, ""

    def tell(self) -> None:
        states = [status.state for run in self.planned if (status := run_status.read(run.folder)) is not None]
        text = ", ".join(f"{len(list(same))} {state}" for state, same in itertools.groupby(sorted(states)))
        if text and text != self.last:
            self.last = text
            print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def wait(planned: Sequence[PlannedRun], report: Report) -> None:
    """Until every run is over, and its job too: one that failed for its job's end may be about to start again."""
    pause = 0.5
    while True:
        jobs = SlurmQueue()
        waiting = [run for run in planned if not _is_over(run, jobs)]
        report.tell()
        if not waiting:
            return
        time.sleep(pause)
        pause = min(10.0, pause * 1.2)


def _is_over(run: PlannedRun, queue: SlurmQueue) -> bool:
    status = run_status.reconcile(run.folder, queue)
    if status is None:
        return True
    if status.state == FINISHED or not status.is_over:
        return status.is_over
    identity = status.starts[-1].slurm_id if status.starts else run_status.job_id(run.folder)
    states = queue.states() if identity is not None else {}
    return states is not None and identity not in states

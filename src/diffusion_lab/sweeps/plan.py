"""A sweep: its folder, the folder of each of its runs, and what is left to do in them.

Every run of a sweep is a command of its own in a folder that is named by what is swept. So the same sweep given again
finds what is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.earlier_versions import current_overrides
from diffusion_lab.config.overrides import identifying_overrides
from diffusion_lab.distributed.slurm_job import SlurmQueue
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs import tables as run_tables
from diffusion_lab.runs.status import FAILED, FINISHED, Status
from diffusion_lab.sweeps import table as sweep_table


class RunFailedError(Exception):
    """A run of a sweep came to no result."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.  words: its overrides.  status: what is known of it.

    is_done: it has its result.  is_busy: a job or a process works on it, or will.  allowed: fields in which the numbers
    of its table may differ.
    """

    words: tuple[str, ...]
    folder: Path
    status: Status | None
    is_done: bool
    trainer: DictConfig | None = None
    allowed: tuple[str, ...] = ()

    @property
    def is_busy(self) -> bool:
        return self.status is not None and not self.status.is_over

    @property
    def next_action(self) -> str:
        """What will be done with it."""
        if self.is_done:
            return "is there"
        if self.status is None:
            return "starts"
        if self.is_busy:
            return f"is {self.status.state}"
        begun = (self.folder / "checkpoints" / "last.ckpt").is_file()
        why = f", failed: {self.status.reason}" if self.status.state == FAILED else ""
        return ("goes on" if begun else "starts again") + why


_launched: dict[Path, PlannedRun] = {}
"""The runs of the sweep that this process starts, by their folders."""


def plan(config: DictConfig, job_overrides: Sequence[Sequence[str]], loader: Any) -> list[PlannedRun]:
    """What there is of a sweep's runs.  config, loader: the sweep's, of Hydra.  Raises UserError."""
    queue, planned = SlurmQueue(), []
    for words in map(tuple, job_overrides):
        run = loader.load_sweep_config(config, list(words))
        folder = Path(str(run.hydra.sweep.dir)).resolve() / str(run.hydra.sweep.subdir)
        status = run_status.reconcile(folder, queue)
        is_done = _is_done(folder, words, run, status)
        planned.append(PlannedRun(words, folder, status, is_done, run.get("trainer"), tuple(run.get("allow", ()))))
    folders = [run.folder for run in planned]
    twice = sorted({folder.name for folder in folders if folders.count(folder) > 1})
    if twice:
        raise UserError(f"a sweep must give each run a folder of its own, got {twice[0]} twice.")
    _launched.update((run.folder, run) for run in planned)
    return planned


def finish() -> str | None:
    """Shows the table of the sweep that this process started; a sentence on the runs that came to no result, if any."""
    if not any(run_status.read(run.folder) for run in _launched.values()):
        return None  # none was started
    reasons = {}
    for run in _launched.values():
        status = run_status.read(run.folder)
        if status is None or status.state != FINISHED:
            reasons[run.folder.name] = "it was never started" if status is None else status.reason or status.state
    for run in list(_launched.values())[:1]:
        sweep_table.write_sweep_table(run.folder.parent, run.allowed)
    if not reasons:
        return None
    name, reason = list(reasons.items())[-1]
    count = f"{len(reasons)} of the sweep's {len(_launched)} runs failed"
    return f"{count}; the same command runs what is missing. {name}: {reason.rstrip('.')}."


def _is_done(folder: Path, words: Sequence[str], config: DictConfig, status: Status | None) -> bool:
    if (
        status is None
        or status.state != FINISHED
        or identifying_overrides(words) != identifying_overrides(_words_before(folder))
    ):
        return False
    # An evaluation is of the checkpoint that it saw.
    if "checkpoint" not in config or OmegaConf.is_missing(config, "run"):
        return True
    from diffusion_lab.runs import sampling_setup

    try:
        return all(target.checkpoint.stat().st_mtime < status.since for target in sampling_setup.find_targets(config))
    except UserError:
        return False  # said by the run itself


def _words_before(folder: Path) -> list[str]:
    path = folder / "overrides.yaml"
    return current_overrides([str(word) for word in OmegaConf.load(path)]) if path.is_file() else []


def print_plan(planned: Sequence[PlannedRun], folder: Path) -> None:
    """One line for each run, before anything is done."""
    done = sum(run.is_done for run in planned)
    title = f"{len(planned)} runs in {folder}" + (f", {done} of them are there" if done else "")
    run_tables.print_rows([["run", "now"], *([run.folder.name, run.next_action] for run in planned)], title)


def mark_queued(run: PlannedRun) -> None:
    """Makes the folder of a run that is about to be started, with its words and its status."""
    status = run_status.reconcile(run.folder)
    if status is not None and not status.is_over:
        return  # the same sweep was given twice at once
    notes = run.folder / ".hydra"
    notes.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(list(run.words)), notes / "overrides.yaml")
    run_status.mark_queued(run.folder)


def job_return(run: PlannedRun) -> JobReturn:
    """What a sweeper is told of a run that is over: its number, or None where it came to none or failed.

    A failure that was told as such would end the sweep; what failed is said at its end.
    """
    status = run_status.read(run.folder)
    answer = JobReturn(overrides=list(run.words), status=JobStatus.COMPLETED)
    answer.return_value = status.result if status is not None and status.state == FINISHED else None
    return answer

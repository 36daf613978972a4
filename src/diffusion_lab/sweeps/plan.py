"""The plan of a sweep: the folder of each run and the next action in this folder.

Every run of a sweep is a separate command in a folder that is named after the swept settings. A sweep that is started
again therefore finds its earlier runs, and only executes the remaining ones.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.overrides import OVERRIDES_FILE
from diffusion_lab.config.program import command_line
from diffusion_lab.distributed.slurm_job import SlurmQueue
from diffusion_lab.errors import UserError
from diffusion_lab.fingerprints import allowed_fields
from diffusion_lab.reporting.text_tables import print_rows
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.find import shell_word
from diffusion_lab.runs.settings.changes import reason_of
from diffusion_lab.runs.status import FAILED, FINISHED, INTERRUPTED, NOT_STARTED, Status
from diffusion_lab.runs.unrecorded import require_plain_sweep_folder
from diffusion_lab.sweeps import table as sweep_table
from diffusion_lab.sweeps.checks import check_settings, only_choices
from diffusion_lab.sweeps.comparison import Comparison, compare


class RunFailedError(Exception):
    """Error for a run of a sweep that ended without a result."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    overrides: command-line overrides of the run.  folder: run folder.
    status: content of the status file in the run folder; None if there is no status file.
    takes_over: whether a process that is not visible here has ended (setting `take_over`).
    is_done: whether the run has finished with the same settings, so that its result is valid.
    shorter: override that asks for fewer steps than the finished run has; None if there is none.
    trainer: settings of the trainer, if the command has one.
    allowed: fingerprint fields in which the metric values in the table of the sweep may differ (setting `allow`).
    """

    overrides: tuple[str, ...]
    folder: Path
    status: Status | None
    is_done: bool
    trainer: DictConfig | None = None
    allowed: tuple[str, ...] = ()
    shorter: str | None = None
    takes_over: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether a job or a process executes the run or is about to start it."""
        return self.status is not None and not self.status.is_over and not self.is_taken_over

    @property
    def is_taken_over(self) -> bool:
        """Whether the run is continued here although its status names a process that is not visible here."""
        if not self.takes_over or self.status is None or self.status.is_over:
            return False
        return not run_status.is_visible(self.folder, self.status)

    @property
    def next_action(self) -> str:
        """What the sweep does with this run, such as "start" or "resume", as printed before the sweep starts."""
        if self.is_done:
            return "skip (finished)" if self.shorter is None else f"skip (finished with more steps than {self.shorter})"
        if self.status is None:
            return "start"
        if self.is_busy:
            return f"{'leave' if self.status.silent_since else 'wait'} ({self.status.text})"
        has_checkpoint = (self.folder / "checkpoints" / "last.ckpt").is_file()
        reasons = {FAILED: f" (failed: {self.status.reason})", INTERRUPTED: f" ({self.status.reason})"}
        reason = reasons.get(self.status.state, "")
        has_started = has_checkpoint or self.status.state != NOT_STARTED or bool(self.status.starts)
        return ("resume" if has_checkpoint else "restart" if has_started else "start") + reason


_launched: dict[Path, PlannedRun] = {}
"""The runs of the sweep that this process launches, by folder."""


_folder: list[Path] = []
"""The folder of the sweep that this process launches."""


def announce(config: DictConfig) -> None:
    """Remember the folder of the sweep that is about to be planned, so that `finish` can remove it if it stays empty.

    A folder that exists is not removed, because another process may have started the same sweep.
    config: config of the sweep, before Hydra creates the folder.
    Raises UserError for a folder of another user with links out of it.
    """
    folder = Path(str(config.hydra.sweep.dir)).resolve()
    require_plain_sweep_folder(folder)
    _folder[:] = [] if folder.exists() else [folder]


def plan(config: DictConfig, job_overrides: Sequence[Sequence[str]], loader: Any) -> list[PlannedRun]:
    """Plan the runs of a sweep.  loader: Hydra's config loader.

    Raises UserError if two runs share a folder, if the folder of a run contains a run with other settings, or if a
    setting of a run has a number or a type that is not accepted.
    """
    queue = SlurmQueue()
    defaults = loader.load_sweep_config(config, only_choices(job_overrides[0])) if job_overrides else config
    planned = [_planned_run(config, tuple(overrides), loader, queue, defaults) for overrides in job_overrides]
    folders = [run.folder for run in planned]
    shared = sorted({folder.name for folder in folders if folders.count(folder) > 1})
    if shared:
        raise UserError(f"each run of a sweep must have its own folder, got {shared[0]} twice; remove repeated values.")
    _launched.update((run.folder, run) for run in planned)
    return planned


def _planned_run(
    config: DictConfig, overrides: tuple[str, ...], loader: Any, queue: SlurmQueue, defaults: DictConfig
) -> PlannedRun:
    run = loader.load_sweep_config(config, list(overrides))
    folder = Path(str(run.hydra.sweep.dir)).resolve() / str(run.hydra.sweep.subdir)
    check_settings(run, overrides, defaults, folder)
    status = run_status.observe(folder, queue)
    found = Comparison()
    if (folder / "config.yaml").is_file() or (status is not None and (status.state == FINISHED or not status.is_over)):
        found = compare(run, overrides, folder, config, loader)
    if found.changes:
        raise UserError(
            f"sweep.name (or hydra.sweep.dir) must name another sweep for other settings, but {folder.name} in "
            f"{folder.parent} is a run with other settings: {', '.join(found.changes[:8])}"
            f"{_how_to_continue(run, found, folder)}."
        )
    is_done = status is not None and status.state == FINISHED and not found.is_longer and _is_current(run, status)
    allowed = tuple(allowed_fields(run.get("allow")))
    return PlannedRun(
        overrides, folder, status, is_done, run.get("trainer"), allowed, found.shorter, run.get("take_over") is True
    )


def _how_to_continue(run: DictConfig, found: Comparison, folder: Path) -> str:
    """Return why a run cannot have another number of steps and how it is trained further; "" for other changes."""
    if not (reason := reason_of(found.changes, other_length=found.is_longer or found.shorter is not None)):
        return ""
    command = f"{command_line(run.hydra.job.config_name)} resume={shell_word(str(folder))} fork=true"
    return f"{reason}; {command} trainer.max_steps={run.trainer.max_steps} trains this run further as a new run"


def forget() -> None:
    """Forget the planned runs of a sweep that starts none of them."""
    _launched.clear()


def _remove_empty_folder() -> None:
    """Remove the folder of the sweep if no run has been started in it."""
    for folder in _folder:
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if names and names <= {"multirun.yaml", "search.db"}:  # which the sweeper writes before the plan
            shutil.rmtree(folder)
    _folder.clear()


def finish() -> str | None:
    """Print the table of the sweep that this process launched, or remove its folder if no run was started.

    Returns an error message if at least one run was started and some runs have no result; None in all other cases.
    """
    _remove_empty_folder()
    if not any(run_status.read(run.folder) for run in _launched.values()):
        return None  # no run was started
    reasons: dict[str, dict[str, str]] = {}  # state -> name of the run -> reason
    for run in _launched.values():
        status = run_status.read(run.folder)
        state = NOT_STARTED if status is None else status.state
        if status is None or state != FINISHED:
            reason = "it was never started" if status is None else status.reason or state
            reasons.setdefault(state, {})[run.folder.name] = reason
    for run in list(_launched.values())[:1]:
        sweep_table.write_sweep_table(run.folder.parent, run.allowed)
    return _without_result(reasons, len(_launched)) if reasons else None


def _without_result(reasons: Mapping[str, Mapping[str, str]], num_runs: int) -> str:
    """Return the error message about runs without a result.  reasons: state -> name of the run -> reason."""
    verbs = {FAILED: ("", ""), INTERRUPTED: ("was ", "were "), NOT_STARTED: ("was ", "were ")}
    states = sorted(reasons, key=[FAILED, INTERRUPTED, *(set(reasons) - set(verbs)), NOT_STARTED].index)
    parts: list[str] = []
    for state in states:
        count = len(reasons[state])
        of_all = "" if parts else f" of the sweep's {num_runs} runs"
        parts.append(f"{count}{of_all} {verbs.get(state, ('is ', 'are '))[count > 1]}{state}")
    listed = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    remedy = f"run the same command again to {'start' if states == [NOT_STARTED] else 'resume'} them"
    named = [": ".join(list(reasons[state].items())[-1]).rstrip(".") for state in states]
    return f"{listed}; {remedy}. {'; '.join(named)}."


def _is_current(config: DictConfig, status: Status) -> bool:
    """Return whether the result of a finished run is valid.

    An evaluation is valid for the checkpoint or the images that it read: a newer checkpoint makes the evaluation out of
    date, also one that was written while the evaluation ran.
    """
    images, run = config.get("images"), None if OmegaConf.is_missing(config, "run") else config.get("run")
    if "checkpoint" not in config or (run is None and images is None):
        return True
    from diffusion_lab.runs.find import find_targets
    from diffusion_lab.runs.setup.image_sets import last_change

    try:
        began = status.starts[-1].began if status.starts else status.since
        if images is not None:
            return last_change(images) < began
        return all(target.checkpoint.stat().st_mtime < began for target in find_targets(config))
    except (UserError, FileNotFoundError):
        return False  # the run itself reports the error


def print_plan(planned: Sequence[PlannedRun], folder: Path) -> None:
    """Print a table with the next action of each run."""
    num_done = sum(run.is_done for run in planned)
    title = f"{len(planned)} runs in {folder}" + (f", {num_done} of them done" if num_done else "")
    print_rows([["run", "action"], *([run.folder.name, run.next_action] for run in planned)], title)


def mark_queued(planned: Sequence[PlannedRun]) -> None:
    """Create the folders of runs that are about to be started, with their overrides and their status."""
    for run in planned:
        status = run_status.reconcile(run.folder)
        if run.is_taken_over:
            run_status.mark_taken_over(run.folder)
        elif status is not None and not status.is_over:
            continue  # another command runs the same sweep
        hydra_folder = run.folder / ".hydra"
        hydra_folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(list(run.overrides)), hydra_folder / OVERRIDES_FILE)
        run_status.mark_queued(run.folder)


def job_return(run: PlannedRun) -> JobReturn:
    """Return the Hydra job that a sweeper receives for a run that has ended.

    The return value of the job is the result of the run, or None if the run failed. The status of the job is always
    COMPLETED, because FAILED would end the sweep; failed runs are reported at the end of the sweep.
    """
    status = run_status.read(run.folder)
    job = JobReturn(overrides=list(run.overrides), status=JobStatus.COMPLETED)
    job.return_value = status.result if status is not None and status.state == FINISHED else None
    return job

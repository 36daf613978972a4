"""Results of a finished or unfinished sweep: a table with one row per run, plots and a contact sheet of samples."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.config.program import command_line
from diffusion_lab.distributed.slurm_job import SlurmQueue
from diffusion_lab.errors import UserError
from diffusion_lab.reporting.text import shell_text, terminal_text
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.metrics_log import LOGGED, METRICS_LOG, read_log
from diffusion_lab.runs.status import FINISHED, RUNNING, Status
from diffusion_lab.runs.tables import averages
from diffusion_lab.runs.tables import table as run_table
from diffusion_lab.runs.tables.averages import TRAINING_STEP
from diffusion_lab.runs.tables.comparable import differing_keys, drop_incomparable, left_out, show_measured_settings
from diffusion_lab.runs.tables.plots import plot_steps
from diffusion_lab.runs.tables.sweep_order import in_typed_order
from diffusion_lab.runs.tables.table import Row
from diffusion_lab.sweeps import progress
from diffusion_lab.sweeps.swept_plots import plot_swept

logger = logging.getLogger(__name__)

SWEEP = "sweep"
"""Name of the files of the table, without suffix."""

FILES = (f"{SWEEP}*.csv", f"{SWEEP}.md", "against_*.png", "contact_sheet.png")
"""Glob patterns of all files with results of a sweep."""


def write_sweep_table(folder: Path, allowed: Iterable[str] = (), *, level: int = logging.WARNING) -> bool:
    """Print the table of a sweep and write sweep.csv, sweep.md, sweep_over_seeds.csv, plots and contact_sheet.png.

    The rows have the order of the values in the command that started the sweep. If its evaluations measure several runs
    each, the settings in which these runs differ are treated like swept settings.

    allowed: fingerprint fields in which the values of a metric may differ, in addition to the fields that the swept
        settings determine.
    level: logging level of the message about values that are not comparable.
    Returns whether all metric values are comparable; values that are not comparable are only in sweep.csv.
    """
    statuses = _statuses(folder)
    rows = [Row.read_or_without_results(run_folder, folder) for run_folder in statuses]
    if not rows:
        return True
    swept = [key for key in run_table.override_keys(rows) if len({row.overrides.get(key) for row in rows}) > 1]
    again = f"{command_line('sweep')} status {shell_text(folder)} --allow"
    of_each = _measured_in_one(rows)
    all_comparable = drop_incomparable(
        rows, list(allowed), lambda fields: " ".join([again, *fields]), swept=[*swept, *of_each], level=level
    )
    if "run" in swept or of_each:
        run_table.show_used_settings(_evaluations(rows), swept)
    swept = _with_settings_of_runs(rows, swept) if of_each else swept
    rows = in_typed_order(rows, swept, folder)  # as in the plots
    show_measured_settings(rows, swept)
    _write_rows(rows, swept, statuses, folder)
    _print_states(statuses, folder)
    with (folder / f"{SWEEP}.md").open("a", encoding="utf-8") as file:
        file.write(averages.write_averages(rows, swept, folder, SWEEP))
    plot_steps(rows, folder)
    plot_swept(_evaluations(rows), swept, folder)
    _save_contact_sheet(rows, swept, folder)
    files = [path.name for name in FILES for path in sorted(folder.glob(name))]
    print(terminal_text(f"results are in {folder}: {', '.join(files)}"), flush=True)
    return all_comparable


def _write_rows(
    rows: Sequence[Row], swept: Sequence[str], statuses: Mapping[Path, Status | None], folder: Path
) -> None:
    """Print the table and write sweep.csv and sweep.md."""
    is_unique = _are_distinct(rows, swept)
    is_named = is_unique and "run" not in swept  # also the measured run, if each evaluation measures several
    cells = run_table.cells(rows)
    table = [_cells(row, shown, statuses[row.folder], folder) for row, shown in zip(rows, cells, strict=True)]
    is_empty = [name for name in table[0] if all(row.get(name) is None for row in table)]
    run_table.write_table(
        table,
        folder,
        SWEEP,
        always=["run", "state", "step", *run_table.number_names(rows), "images_per_second", run_table.DURATION],
        hidden=[*["run"] * is_unique, *["trained"] * is_named, "reason", *is_empty, *left_out(rows)],
        num_labels=max(1, len([key for key in swept if key in cells[0]])) if is_unique else 1,
    )


def _evaluations(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows with results of evaluations, without evaluations that have failed; all rows if there is none."""
    return [row for row in rows if row.run != row.folder] or rows


def _measured_in_one(rows: Sequence[Row]) -> list[str]:
    """Return the setting, run or images, of which each evaluation of a sweep measures several; [] if they do not."""
    evaluated = [row for row in rows if row.run != row.folder and row.job in row.folder.parents]
    return ["images" if evaluated[0].is_of_images else "run"] if evaluated else []


def _with_settings_of_runs(rows: Sequence[Row], swept: Sequence[str]) -> list[str]:
    """Return the swept settings and the settings in which the runs differ that each evaluation measures.

    The setting `run` is returned only if the others are equal in two rows.
    """
    differing = [key for key in dict.fromkeys([*swept, *differing_keys(rows)]) if key != "run"]
    return differing if _are_distinct(rows, differing) else [*differing, "run"]


def _are_distinct(rows: Sequence[Row], swept: Sequence[str]) -> bool:
    """Return whether all rows have different values of the swept settings."""
    values = [
        tuple(row.training_step if key == TRAINING_STEP else row.overrides.get(key) for key in swept) for row in rows
    ]
    return len(set(values)) == len(rows)


def _print_states(statuses: Mapping[Path, Status | None], folder: Path) -> None:
    """Print the reasons for failures and the number of runs in each state, and append them to sweep.md."""
    runs: dict[str, list[str]] = {}
    for path, status in statuses.items():
        if status is not None and status.reason is not None:
            label = "" if status.reason.startswith(status.label) else f"{status.text}: "
            runs.setdefault(f"{label}{status.reason}", []).append(str(path.relative_to(folder)))
        elif _is_damaged(path, status):
            reason = f"{run_status.STATUS} cannot be read as this package writes it, so that the state is unknown"
            runs.setdefault(reason, []).append(str(path.relative_to(folder)))
    lines = [terminal_text(f"{', '.join(names)}: {reason}") for reason, names in runs.items()]
    lines += filter(None, [progress.summary_line(statuses)])
    print("\n".join(lines), end="\n" if lines else "")
    with (folder / f"{SWEEP}.md").open("a", encoding="utf-8") as file:
        file.writelines(f"\n{run_table.markdown_text(line)}\n" for line in lines)


def _statuses(folder: Path) -> dict[Path, Status | None]:
    """Return the status of each run folder of a sweep, in natural order of the folder names."""
    names = (run_status.STATUS, run_table.SUMMARY, run_table.METRICS)
    # An evaluation of several runs has one status file, and a subfolder with the results of each run.
    found = {path.parent for name in names for path in folder.rglob(name)} - {folder}
    found -= {path for path in found if any(path in other.parents for other in found)}
    queue = SlurmQueue()
    ordered = sorted(found, key=lambda path: run_table.natural_order(path.relative_to(folder)))
    return {path: run_status.observe(path, queue) or _parent_status(path, folder, queue) for path in ordered}


def _parent_status(run_folder: Path, folder: Path, queue: SlurmQueue) -> Status | None:
    for parent in run_folder.parents:
        if parent == folder:
            return None
        if status := run_status.observe(parent, queue):
            return status
    return None


def _cells(row: Row, cells: dict[str, Any], status: Status | None, folder: Path) -> dict[str, Any]:
    measured = [name for name in row.values if name in row.fingerprints]
    values = {**row.values, **_logged(row.folder, status)}
    result = {
        "state": ("unknown" if _is_damaged(row.folder, status) else None) if status is None else status.text,
        "step": values.get("step", values.get("steps", row.training_step)),
        "loss": values.get("loss"),
        **{name: values[name] for name in values if name in measured or name not in (*LOGGED, "steps", "minutes")},
        "images_per_second": values.get("images_per_second"),
        "minutes": _minutes(row, status),
        "reason": None if status is None or status.reason is None else status.reason[:120],
    }
    settings = {key: value for key, value in cells.items() if key not in row.values and key != "training_step"}
    return {**settings, "run": str(row.folder.relative_to(folder)), **result}


def _minutes(row: Row, status: Status | None) -> float | None:
    """Return the duration of all starts of a run, which a finished run has recorded in its results."""
    recorded: float | None = row.values.get(run_table.MINUTES)
    if status is None or (status.state == FINISHED and recorded is not None):
        return recorded
    return 60 * status.hours(_last_written(row.folder))


def _logged(folder: Path, status: Status | None) -> dict[str, Any]:
    """Return the last logged values and the step of an unfinished run; {} after a warning if they are damaged."""
    if status is None or status.state == FINISHED:
        return {}
    try:
        step = progress.last_step(folder, status)
        return _last_logged(folder) | ({"step": step} if step or status.state == RUNNING else {})
    except UserError as error:
        logger.warning("%s; the table does not show what this run has logged.", str(error).rstrip("."))
        return {}


def _is_damaged(folder: Path, status: Status | None) -> bool:
    """Return whether a folder has a status file that cannot be read."""
    return status is None and (folder / run_status.STATUS).is_file()


def _last_logged(folder: Path) -> dict[str, Any]:
    """Return the last value of each metric that a run has logged in its metrics.csv."""
    last: dict[str, Any] = {name: value for line in read_log(folder) for name, value in line.items()}
    return {name: value for name, value in last.items() if not name.startswith("measuring_")}


def _last_written(folder: Path) -> float | None:
    """Return the time at which a run last wrote results, in seconds since 1970; None if it has not written any."""
    files = [path for path in (folder / METRICS_LOG, folder / run_table.METRICS) if path.is_file()]
    return max((path.stat().st_mtime for path in files), default=None)


def _save_contact_sheet(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> None:
    """Save a sheet with the last sample grid of each run.

    Images at the same position in two grids have the same seed.
    """
    labeled = {}
    for row in rows:
        found = sorted((row.folder / "samples").glob("step_*.png"))[-1:] or [row.folder / "samples.png"]
        if found[0].is_file():
            parts = [row.run.name] * ("run" in swept)
            parts += [f"{key}={row.overrides[key]}" for key in swept if key in row.overrides and key != "run"]
            parts += [f"step {int(step):,}" for step in re.findall(r"step_(\d+)", found[0].stem)]
            labeled[" ".join(parts) or row.folder.name] = found[0]
    if len(labeled) > 1:
        from diffusion_lab.reporting import image_grids

        image_grids.save_sheet(labeled, folder / "contact_sheet.png")

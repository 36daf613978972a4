"""Results of a finished or unfinished sweep: a table with one row per run, plots and a contact sheet of samples."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.distributed.slurm_job import SlurmQueue
from diffusion_lab.fingerprints import fields_set_by
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs import tables as run_tables
from diffusion_lab.runs.status import FINISHED, Status
from diffusion_lab.runs.tables import Row

SWEEP = "sweep"
"""Name of the files of the table, without suffix."""

LOGGED = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "images_per_second", "data_wait",
          "after_training")  # fmt: skip
"""Columns of metrics.csv that are not measured metrics, in addition to the columns that start with measuring_."""


def write_sweep_table(folder: Path, allowed: Iterable[str] = ()) -> bool:
    """Print the table of a sweep and write sweep.csv, sweep.md, plots and contact_sheet.png.

    allowed: fingerprint fields in which the values of a metric may differ, in addition to the fields that the swept
        settings determine.
    Returns whether all metric values are comparable; columns whose values are not comparable are left out.
    """
    statuses = _statuses(folder)
    rows = [Row.read(run_folder, folder) for run_folder in statuses]
    if not rows:
        return True
    swept = [key for key in run_tables.override_keys(rows) if len({row.overrides.get(key) for row in rows}) > 1]
    all_comparable = run_tables.drop_incomparable(rows, [*fields_set_by(swept), *allowed], [folder])
    table = [_cells(row, statuses[row.folder], folder, rows, swept) for row in rows]
    is_unique = len({tuple(row.overrides.get(key) for key in swept) for row in rows}) == len(rows)
    run_tables.write_table(
        table,
        folder,
        SWEEP,
        always=["run", "state", "step", *run_tables.number_names(rows), "images_per_second", "hours"],
        hidden=["run"] * is_unique + [name for name in table[0] if all(row.get(name) is None for row in table)],
    )
    run_tables.plot_steps(rows, folder)
    _plot_swept(rows, swept, folder)
    _save_contact_sheet(rows, swept, folder)
    return all_comparable


def _statuses(folder: Path) -> dict[Path, Status | None]:
    """Return the status of each run folder of a sweep, in natural order of the folder names."""
    names = (run_status.STATUS, run_tables.SUMMARY, run_tables.METRICS)
    # An evaluation of several runs has one status file, and a subfolder with the results of each run.
    found = {path.parent for name in names for path in folder.rglob(name)} - {folder}
    found -= {path for path in found if any(path in other.parents for other in found)}
    queue = SlurmQueue()
    ordered = sorted(found, key=lambda path: run_tables.natural_order(path.relative_to(folder)))
    return {path: run_status.reconcile(path, queue) or _parent_status(path, folder, queue) for path in ordered}


def _parent_status(run_folder: Path, folder: Path, queue: SlurmQueue) -> Status | None:
    for parent in run_folder.parents:
        if parent == folder:
            return None
        if status := run_status.reconcile(parent, queue):
            return status
    return None


def _cells(row: Row, status: Status | None, folder: Path, rows: Sequence[Row], swept: Sequence[str]) -> dict[str, Any]:
    cells = run_tables.cells(row, rows)
    measured = [name for name in row.values if name in row.fingerprints]
    logged = {} if status is None or status.state == FINISHED else _last_logged(row.folder)
    values = {**row.values, **logged}
    result = {
        "state": None if status is None else status.state,
        "step": values.get("step", values.get("steps", row.training_step)),
        "loss": values.get("loss"),
        **{name: values[name] for name in values if name in measured or name not in (*LOGGED, "steps", "minutes")},
        "images_per_second": values.get("images_per_second"),
        "hours": None if status is None else status.hours(_last_written(row.folder)),
        "reason": None if status is None or status.reason is None else status.reason[:120],
    }
    origin = ("run", "trained", "training_step")
    overrides = {key: value for key, value in cells.items() if key not in row.values and key not in origin}
    trained = {"trained": cells["trained"]} if "run" in swept else {}
    return {"run": str(row.folder.relative_to(folder)), **trained, **overrides, **result}


def _last_logged(folder: Path) -> dict[str, Any]:
    """Return the last value of each metric that a run has logged in its metrics.csv."""
    path, last = folder / "metrics.csv", dict[str, Any]()
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                last |= {name: float(text) for name, text in row.items() if name and text and _is_number(text)}
    if "step" in last:
        last["step"] = int(last["step"])
    return {name: value for name, value in last.items() if not name.startswith("measuring_")}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _last_written(folder: Path) -> float | None:
    """Return the time at which a run last wrote results, in seconds since 1970; None if it has not written any."""
    files = [path for path in (folder / "metrics.csv", folder / run_tables.METRICS) if path.is_file()]
    return max((path.stat().st_mtime for path in files), default=None)


def _plot_swept(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> None:
    """Plot every metric against every swept setting; runs that differ only in other settings share an x value."""
    for key in swept:
        if key == "sampler.num_steps":
            continue  # plotted by run_tables.plot_steps
        panels = {}
        for name in run_tables.number_names(rows):
            points = [
                (row.run if key == "run" else row.overrides.get(key, "default"), row.values[name])
                for row in rows
                if isinstance(row.values.get(name), float)
            ]
            if "_std_" not in name and len({value for value, _ in points}) > 1:
                panels[name] = points
        if panels:
            from diffusion_lab.reporting import plots

            plots.save_against(panels, key, folder / f"against_{key.replace('/', '.')}.png")


def _save_contact_sheet(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> None:
    """Save a sheet with the last sample grid of each run.

    Images at the same position in two grids have the same seed.
    """
    labeled = {}
    for row in rows:
        found = sorted((row.folder / "samples").glob("step_*.png"))[-1:] or [row.folder / "samples.png"]
        if found[0].is_file():
            parts = [row.run] * ("run" in swept)
            parts += [f"{key}={row.overrides[key]}" for key in swept if key in row.overrides and key != "run"]
            parts += [f"step {int(step):,}" for step in re.findall(r"step_(\d+)", found[0].stem)]
            labeled[" ".join(parts) or row.folder.name] = found[0]
    if len(labeled) > 1:
        from diffusion_lab.reporting import image_grids

        image_grids.save_sheet(labeled, folder / "contact_sheet.png")

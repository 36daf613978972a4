"""The table of a sweep, at any time: a row a run, a plot against each swept value, the runs' samples side by side."""

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

LOGGED = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "images_per_second", "data_wait")
"""Columns of metrics.csv that are no measured numbers, beside those of the time that measuring took."""


def write_sweep_table(folder: Path, allowed: Iterable[str] = ()) -> bool:
    """Prints and writes the table of a sweep: sweep.csv, sweep.md, plots and contact_sheet.png.

    Of the numbers all that was swept may differ, and the fields `allowed`; returns whether all could stand together.
    """
    statuses = _statuses(folder)
    rows = [Row.read(place, folder) for place in statuses]
    if not rows:
        return True
    swept = [key for key in run_tables.keys(rows) if len({row.overrides.get(key) for row in rows}) > 1]
    alike = run_tables.drop_incomparable(rows, [*fields_set_by(swept), *allowed], [folder])
    exact = [_cells(row, statuses[row.folder], folder, rows, swept) for row in rows]
    told_apart = len({tuple(row.overrides.get(key) for key in swept) for row in rows}) == len(rows)
    run_tables.write_table(
        exact,
        folder,
        SWEEP,
        always=["run", "state", "step", *run_tables.names(rows), "images_per_second", "hours"],
        hidden=["run"] * told_apart + [name for name in exact[0] if all(row.get(name) is None for row in exact)],
    )
    run_tables.plot_steps(rows, folder)
    _plot(rows, swept, folder)
    _save_sheet(rows, swept, folder)
    return alike


def _statuses(folder: Path) -> dict[Path, Status | None]:
    """The runs of a sweep, each with what became of it, in the order of what was swept."""
    names = (run_status.STATUS, run_tables.SUMMARY, run_tables.METRICS)
    # An evaluation of many runs has numbers in folders of its own, and a state as a whole.
    found = {path.parent for name in names for path in folder.rglob(name)} - {folder}
    found -= {place for place in found if any(place in other.parents for other in found)}
    queue = SlurmQueue()
    ordered = sorted(found, key=lambda place: run_tables.natural_order(place.relative_to(folder)))
    return {place: run_status.reconcile(place, queue) or _of_the_whole(place, folder, queue) for place in ordered}


def _of_the_whole(place: Path, folder: Path, queue: SlurmQueue) -> Status | None:
    for parent in place.parents:
        if parent == folder:
            return None
        if status := run_status.reconcile(parent, queue):
            return status
    return None


def _cells(row: Row, status: Status | None, folder: Path, rows: Sequence[Row], swept: Sequence[str]) -> dict[str, Any]:
    cells = run_tables.cells(row, rows)
    measured = [name for name in row.values if name in row.fingerprints]
    so_far = {} if status is None or status.state == FINISHED else _so_far(row.folder)
    values = {**row.values, **so_far}
    result = {
        "state": None if status is None else status.state,
        "step": values.get("step", values.get("steps", row.training_step)),
        "loss": values.get("loss"),
        **{name: values[name] for name in values if name in measured or name not in (*LOGGED, "steps", "minutes")},
        "images_per_second": values.get("images_per_second"),
        "hours": None if status is None else status.hours(_last_sign(row.folder)),
        "reason": None if status is None or status.reason is None else status.reason[:120],
    }
    told = ("run", "trained", "training_step")
    asked = {key: value for key, value in cells.items() if key not in row.values and key not in told}
    trained = {"trained": cells["trained"]} if "run" in swept else {}
    return {"run": str(row.folder.relative_to(folder)), **trained, **asked, **result}


def _so_far(folder: Path) -> dict[str, Any]:
    """The last of each number that a run has logged."""
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


def _last_sign(folder: Path) -> float | None:
    """When a run last wrote of its progress."""
    files = [path for path in (folder / "metrics.csv", folder / run_tables.METRICS) if path.is_file()]
    return max((path.stat().st_mtime for path in files), default=None)


def _plot(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> None:
    """Every number against every swept value; runs that differ in others too are points above it."""
    for key in swept:
        if key == "sampler.num_steps":
            continue  # against the steps of samplers there is a plot of its own
        panels = {}
        for name in run_tables.names(rows):
            points = [
                (row.run if key == "run" else row.overrides.get(key, "as it was"), row.values[name])
                for row in rows
                if isinstance(row.values.get(name), float)
            ]
            if "_std_" not in name and len({value for value, _ in points}) > 1:
                panels[name] = points
        if panels:
            from diffusion_lab.reporting import plots

            plots.save_against(panels, key, folder / f"against_{key.replace('/', '.')}.png")


def _save_sheet(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> None:
    """The last picture of each run: the same cell of each has the same seed."""
    labelled = {}
    for row in rows:
        found = sorted((row.folder / "samples").glob("step_*.png"))[-1:] or [row.folder / "samples.png"]
        if found[0].is_file():
            words = [row.run] * ("run" in swept)
            words += [f"{key}={row.overrides[key]}" for key in swept if key in row.overrides and key != "run"]
            words += [f"step {int(step):,}" for step in re.findall(r"step_(\d+)", found[0].stem)]
            labelled[" ".join(words) or row.folder.name] = found[0]
    if len(labelled) > 1:
        from diffusion_lab.reporting import image_grids

        image_grids.save_sheet(labelled, folder / "contact_sheet.png")

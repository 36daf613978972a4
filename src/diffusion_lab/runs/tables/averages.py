"""Mean and standard deviation over seeds of the results of several runs.

Only values are averaged that were computed in the same way, except for the seed.
"""

import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.fingerprints import MISSING, describe_differences, differences
from diffusion_lab.reporting.csv_files import write_csv_dicts
from diffusion_lab.reporting.text_tables import print_rows
from diffusion_lab.runs.settings.used import UsedSettings
from diffusion_lab.runs.tables import table
from diffusion_lab.runs.tables.table import Row

logger = logging.getLogger(__name__)

LOSS = "loss"

OF_LOSS = ("schedule", "objective", "prediction", "weighting", "times", "space", "data")
"""Config groups that determine what the training loss is; losses with other choices are not comparable."""

SEED = "seed"

SEEDS = (SEED, "trained.seed")
"""Columns of seeds: of a run or evaluation, and of the trained run that an evaluation measured."""

TRAINING_STEP = "training_step"


def write_averages(rows: Sequence[Row], swept: Sequence[str], folder: Path, name: str) -> str:
    """Print and write the mean and the standard deviation of each result over the runs that differ only in the seed.

    Settings without any result, because all their runs failed early, have no row. If a run was measured repeatedly with
    the same settings, only the last measurement counts.
    swept: settings in which the runs differ.  Writes NAME_over_seeds.csv, and returns the table in Markdown; writes
    nothing and returns "" if no two runs with results differ only in the seed.
    """
    rows = list({(row.run, *(value_of(row, key) for key in (*swept, *SEEDS))): row for row in rows}.values())
    results = [name for name in (LOSS, *table.number_names(rows)) if "_std_" not in name]
    alike = [(settings, _alike(group, results)) for settings, group in by_settings(rows, swept)]
    groups = [(settings, {name: finite(group, name) for name, group in found.items()}) for settings, found in alike]
    groups = [(settings, results) for settings, results in groups if any(results.values())]
    if not set(SEEDS) & set(swept) or not any(len(values) > 1 for _, results in groups for values in results.values()):
        return ""
    shown = [name for name in results if any(results[name] for _, results in groups)]
    exact = [
        {**settings, "num_seeds": max(map(len, results.values()))}
        | {f"{part}_{name}": value for name in shown for part, value in _mean_and_std(results[name]).items()}
        for settings, results in groups
    ]
    note = _note_on_losses(rows)
    write_csv_dicts(folder / f"{name}_over_seeds.csv", exact)
    keys = [key for key in swept if key not in SEEDS]
    lines = [[*keys, "num_seeds", *shown]]
    lines += [[*(str(row.get(key, "")) for key in (*keys, "num_seeds")), *_texts(row, shown)] for row in exact]
    print_rows(lines, "mean ± standard deviation over seeds", num_labels=max(1, len(keys)))
    print(note, end="\n" if note else "")
    return f"\nMean ± standard deviation over seeds:\n\n{table.markdown(lines)}\n{note}\n".rstrip("\n") + "\n"


def by_settings(rows: Sequence[Row], swept: Sequence[str]) -> list[tuple[dict[str, str], list[Row]]]:
    """Return the rows in groups with equal values of all swept settings except the seed, with these values."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        settings = tuple((key, value_of(row, key)) for key in swept if key not in SEEDS)
        groups.setdefault(settings, []).append(row)
    return [(dict(settings), group) for settings, group in groups.items()]


def value_of(row: Row, key: str) -> str:
    """Return the value of a swept setting, which a run without an override of the setting has by default."""
    if key == TRAINING_STEP:
        return str(row.training_step)
    return row.run.name if key == "run" else row.overrides.get(key, "default")


def finite(rows: Sequence[Row], name: str) -> list[float]:
    """Return the finite values of a result."""
    values = [row.values.get(name) for row in rows]
    return [value for value in values if isinstance(value, float) and math.isfinite(value)]


def _alike(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Sequence[Row]]:
    """Return the rows of one group whose values of each result can be averaged; no rows if they differ.

    The values can be averaged if they were computed in the same way, except for the seed.
    """
    result: dict[str, Sequence[Row]] = {}
    for name in names:
        measured = [row for row in rows if finite([row], name)]
        if found := different_protocols(measured, name):
            owners = list(table.short_paths(row.folder for row in measured).values())
            logger.warning("%s is not averaged over seeds: %s.", name, describe_differences(found, owners))
        result[name] = [] if found else measured
    return result


def different_protocols(rows: Sequence[Row], name: str) -> dict[str, list[Any]]:
    """Return the fields in which the ways differ that a result of several rows was computed, with their values.

    Fields that are unknown for a row, for example because its config file is missing, are ignored.
    """
    found = differences([_protocol(row, name) for row in rows], [SEED]) if rows else {}
    return {field: values for field, values in found.items() if MISSING not in values}


def _protocol(row: Row, name: str) -> dict[str, Any]:
    """Return what determines a result: the fingerprint of a metric value, or the settings of the training loss."""
    if name != LOSS:
        return row.fingerprints.get(name, {})
    used = UsedSettings.read(row.folder)
    settings = {**row.overrides, **used.values, **used.choices}
    return {key: value for key, value in settings.items() if _determines_loss(key)}


def _determines_loss(key: str) -> bool:
    """Return whether the training loss depends on a setting, and no other setting of these groups is its original.

    The setting times.schedule._target_, for example, repeats schedule._target_.
    """
    group, *inner = key.split(".")
    return group in OF_LOSS and not (group == "data" and inner) and not {*inner[:1]} & {*OF_LOSS}


def _note_on_losses(rows: Sequence[Row]) -> str:
    """Return a note if the losses of the rows are not comparable; "" if they are."""
    different = different_protocols([row for row in rows if finite([row], LOSS)], LOSS)
    groups = dict.fromkeys(field.partition(".")[0] for field in different)
    return f"losses with different {', '.join(groups)} are not comparable." if groups else ""


def _mean_and_std(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the standard deviation of a sample (divided by n - 1); None if it is undefined."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def _texts(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    both = [(row[f"mean_{name}"], row[f"std_{name}"]) for name in names]
    return [" ± ".join(table.round_value(value) for value in pair if value is not None) for pair in both]

"""Comparison of metric values: which values are comparable, and in which settings their measurements differ."""

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diffusion_lab.config.overrides import quote
from diffusion_lab.config.program import command_line
from diffusion_lab.fingerprints import (
    COVERED,
    MISSING,
    allowed_fields,
    describe_differences,
    differences,
    fields_set_by,
    flat,
)
from diffusion_lab.reporting.text import shell_line
from diffusion_lab.runs.settings.measured import merged, shown_name, shown_text
from diffusion_lab.runs.tables import table
from diffusion_lab.runs.tables.averages import TRAINING_STEP, write_averages
from diffusion_lab.runs.tables.plots import plot_runs, plot_steps
from diffusion_lab.runs.tables.sweep_order import in_typed_order
from diffusion_lab.runs.tables.table import Row

logger = logging.getLogger(__name__)

OF_METRIC = ("metric", "features", "reference")
"""Fingerprint fields that differ between the metrics of one measurement."""

MAIN = ("sampler.name", "sampler.num_steps", "guidance_scale")
"""Fingerprint fields that tables show if they differ, also if a shown setting, such as schedule, determines them."""


def write_and_print_table(
    folders: Sequence[Path],
    output: Path,
    name: str,
    *,
    swept: Iterable[str] = (),
    allowed: str | Sequence[str] | None = (),
    numbers: str | Sequence[str] = (),
    level: int = logging.WARNING,
) -> bool:
    """Print and write one table, with plots, of all results at or below some folders.

    Writes output/NAME.csv and output/NAME.md. The table shows the settings in which the runs and the measurements
    differ. Metric values are comparable if their fingerprints differ only in fields that the settings `swept`
    determine, or in the fields `allowed`; results of a single sweep also in the fields that its swept settings
    determine. Metrics whose values are not comparable are only in the CSV file, which also shows the settings in which
    they differ, and a message names their differences.
    numbers: setting `numbers` of the command in the message; by default `folders`.
    level: logging level of the message.
    Returns whether all metric values are comparable.
    """
    given = allowed_fields(allowed)
    rows = table.readable_rows(_in_sweep_order, folders)
    if not rows:
        return True

    def again(fields: Sequence[str]) -> str:
        values = [f"numbers={_in_grammar(numbers or list(map(str, folders)))}", f"allow={_in_grammar(fields)}"]
        return f"{command_line('compare')} {shell_line(values)}"

    comparable = drop_incomparable(rows, given, again, swept=[*swept, *_swept_in(rows)], level=level)
    table.show_used_settings(rows)
    _add_trained(rows)
    if len(folders) == 1:
        rows = in_typed_order(rows, table.override_keys(rows), folders[0])
    show_measured_settings(rows)
    cells = [{**shown, "folder": str(row.folder)} for row, shown in zip(rows, table.cells(rows), strict=True)]
    shown, hidden = ["run", *table.number_names(rows)], ["folder", *left_out(rows)]
    table.write_table(cells, output, name, always=shown, hidden=hidden)
    with (output / f"{name}.md").open("a", encoding="utf-8") as file:
        file.write(write_averages(rows, differing_keys(rows), output, name))
    if not plot_steps(rows, output):
        plot_runs(rows, output)
    return comparable


def _in_sweep_order(folder: Path) -> list[Row]:
    """Return the results at or below a folder; those of a sweep in the order of the values in its command."""
    rows = table.find_rows(folder)
    return in_typed_order(rows, table.override_keys(rows), folder)


def differing_keys(rows: Sequence[Row]) -> list[str]:
    """Return the settings in which the rows differ, and TRAINING_STEP if the rows measured different steps."""
    keys = [key for key in table.override_keys(rows) if len({row.overrides.get(key) for row in rows}) > 1]
    return [*keys, TRAINING_STEP] if len({row.training_step for row in rows}) > 1 else keys


def _add_trained(rows: Sequence[Row]) -> None:
    """Add the settings trained.KEY, which rows of evaluations have, to the rows of training runs."""
    named = [key for key in table.override_keys(rows) if key.startswith("trained.")]
    for row in rows:
        if row.run == row.folder:
            own = {key: row.overrides.get(key.removeprefix("trained.")) for key in named}
            row.overrides |= {key: value for key, value in own.items() if value is not None}


def _swept_in(rows: Sequence[Row]) -> list[str]:
    """Return the settings that a sweep varies, if all rows are runs of this sweep; no settings otherwise."""
    sweeps = {row.job.resolve().parent for row in rows}
    if len(sweeps) > 1 or not all((sweep / "multirun.yaml").is_file() for sweep in sweeps):  # written by Hydra
        return []
    return differing_keys(rows)


def _in_grammar(value: Any) -> str:
    """Return a value or a list of values in the form in which the command line accepts it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_in_grammar, value))}]"
    return str(value) if re.fullmatch(r"[\w./*+-]+", str(value)) else quote(str(value))


def drop_incomparable(
    rows: Sequence[Row],
    allowed: Sequence[str],
    command: Callable[[Sequence[str]], str],
    *,
    swept: Iterable[str] = (),
    level: int = logging.WARNING,
) -> bool:
    """Leave out metrics whose values are not comparable, and log their differences; return whether none is left out.

    The fingerprints of a metric that is left out move to `Row.left_out`; its values remain in `Row.values`.

    allowed: fingerprint fields in which the values may differ.  swept: settings that may differ, with their effects.
    command: function that returns the command that compares the values although some fields differ.
    level: logging level of the differences.
    """
    folders = table.short_paths(row.folder for row in rows)
    metrics: dict[str, list[str]] = {}  # description of the differences -> names of the metrics that have them
    fields = dict.fromkeys(allowed)
    _note_unused(rows, allowed)
    for name in table.number_names(rows):
        measured = [row for row in rows if name in row.fingerprints]
        found = differences([row.fingerprints[name] for row in measured], [*fields_set_by(swept), *allowed])
        if found:
            text = describe_differences(found, [folders[row.folder] for row in measured])
            metrics.setdefault(text, []).append(name)
            fields |= dict.fromkeys(field.partition(".")[0] for field in found)
            for row in measured:
                row.left_out[name] = row.fingerprints.pop(name)
    _note_shared_noise(rows)
    for text, names in metrics.items():
        logger.log(level, "%s cannot be compared, because the measurements differ: %s.", ", ".join(names), text)
    if metrics:
        logger.info(
            "the table leaves these values out, which are in the CSV file; if the differences are intended, this "
            "command compares them anyway: %s",
            command(list(fields)),
        )
    return not metrics


def left_out(rows: Sequence[Row]) -> list[str]:
    """Return the names of all metrics that a table leaves out, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.left_out))


def _note_shared_noise(rows: Sequence[Row]) -> None:
    """Log a note, once, if two evaluations of the same run use partly the same noise.

    Image k of an evaluation with seed s is generated from noise with seed s + k. The evaluations therefore share noise
    if their seeds differ by less than num_samples.
    """
    for name in table.number_names(rows):
        for one, other in itertools.combinations([row for row in rows if name in row.fingerprints], 2):
            first, second = one.fingerprints[name], other.fingerprints[name]
            if one.run != other.run or list(differences((first, second))) != ["seed"]:
                continue
            num_shared = first["num_samples"] - abs(first["seed"] - second["seed"])
            if num_shared > 0:
                logger.info(
                    "evaluations with seed=%s and with seed=%s use the same noise for %s of %s images; they share no "
                    "noise if their seeds differ by at least num_samples.",
                    *(first["seed"], second["seed"], f"{num_shared:,}", f"{first['num_samples']:,}"),
                )
                return


def show_measured_settings(rows: Sequence[Row], swept: Sequence[str] = ()) -> None:
    """Add the settings of the measurements that differ between rows, unless another setting of a row determines them.

    A measurement during training has its own sampler, whose settings replace the settings of the run unless these
    are `swept`.
    """
    shown = [key for key in table.override_keys(rows) if len({row.overrides.get(key) for row in rows}) > 1]
    shown += ["run"] if len({row.run for row in rows}) > 1 else []
    determined = fields_set_by(key.removeprefix("trained.") for key in shown)
    measured = [row for row in rows if row.fingerprints or row.left_out]
    settings = [
        {key: value for key, value in merged(row.fingerprints | row.left_out).items() if key not in OF_METRIC}
        for row in measured
    ]
    # Evaluations without generated images have fewer fields, which is not a difference.
    common = [{key: one[key] for key in one if all(key in other for other in settings)} for one in settings]
    generated = [k for k, one in enumerate(settings) if "sampler" in one]
    _add_differing([measured[k] for k in generated], [settings[k] for k in generated], determined, swept)
    _add_differing(measured, common, determined, swept)
    for name in (*table.number_names(rows), *left_out(rows)):
        found = [(row, (row.fingerprints | row.left_out).get(name)) for row in rows]
        owners = [row for row, fingerprint in found if fingerprint]
        of_metric = [{key: fingerprint.get(key) for key in OF_METRIC} for _, fingerprint in found if fingerprint]
        _add(owners, differences(of_metric, determined), swept)


def _add_differing(
    rows: Sequence[Row], settings: Sequence[dict[str, Any]], determined: Sequence[str], swept: Sequence[str]
) -> None:
    """Add the settings in which the measurements of the rows differ.  settings: settings of each measurement."""
    main = [{shown_name(field): value for field, value in flat(one).items() if field in MAIN} for one in settings]
    _add(rows, differences(main), swept)
    _add(rows, differences(settings, determined), swept)


def _add(rows: Sequence[Row], found: Mapping[str, Sequence[Any]], swept: Sequence[str]) -> None:
    """Add differing fingerprint fields to the settings of the rows.  found: see `differences`."""
    for field, values in found.items():
        column = shown_name(field)
        for row, value in zip(rows, values, strict=True):
            is_own = row.run == row.folder and field.partition(".")[0] in COVERED["callbacks"] and column not in swept
            if value != MISSING and (is_own or column not in row.overrides):
                row.overrides[column] = shown_text(field, value)


def _note_unused(rows: Sequence[Row], allowed: Sequence[str]) -> None:
    """Log a warning for each nested field in `allowed` that no fingerprint has."""
    known = [field for row in rows for fingerprint in row.fingerprints.values() for field in flat(fingerprint)]
    for name in allowed:
        if "." in name and known and not any(f"{field}.".startswith(f"{name}.") for field in known):
            close = get_close_matches(name, known, n=1)
            hint = f"; perhaps you mean {close[0]}" if close else ""
            logger.warning("allow=%s has no effect: no metric value has this fingerprint field%s.", name, hint)

"""Tables of the results of many runs."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_lab.config.earlier_versions import current_fingerprint, current_metric, current_overrides
from diffusion_lab.config.saved_files import read_saved, read_saved_json, reading
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.reporting.csv_files import write_csv_dicts
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.reporting.text_tables import format_duration, print_rows
from diffusion_lab.runs.settings.measured import is_used, measured_settings
from diffusion_lab.runs.settings.used import UsedSettings, differing, is_shown

logger = logging.getLogger(__name__)

SUMMARY, METRICS = "summary.json", "metrics.json"

MINUTES, DURATION = "minutes", "duration"
"""Key of the duration of a run, over all its starts, and its column in tables with rounded values."""

LONGEST_MINUTES = 10**9
"""Limit of the duration of a run in minutes, 1900 years."""


@dataclass
class Row:
    """The results in one folder.

    overrides: overrides on the command line, by key.  values: all values in summary.json and metrics.json, by name.
    job: folder of the command that wrote the results.  run: folder of the measured run; `folder` for a training run.
    fingerprints: fingerprints of the metric values, by metric name.
    left_out: fingerprints of the metric values that are not comparable, which only the CSV file of a table contains.
    training_step: training step of the measured checkpoint; None if unknown.
    evaluations: number of evaluations of the network for one image; None if unknown.
    """

    folder: Path
    overrides: dict[str, str]
    values: dict[str, Any]
    job: Path
    run: Path
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    training_step: int | None = None
    evaluations: int | None = None
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def is_of_images(self) -> bool:
        """Whether images of unknown origin were measured; `run` is then their folder or archive."""
        return any("images" in fingerprint for fingerprint in (self.fingerprints | self.left_out).values())

    @classmethod
    def read(cls, folder: Path, top: Path) -> "Row":
        """Read the results in `folder`, which is `top` or a folder below `top`.

        The overrides are read from the .hydra folder in `folder` or in its nearest parent that has one, up to `top`, or
        else in the folder of the command that metrics.json names.
        """
        with reading(folder):
            return cls._read(folder, top)

    @classmethod
    def read_or_without_results(cls, folder: Path, top: Path) -> "Row":
        """Return the row of `read`; a row without results, after a warning, if a file in the folder cannot be read."""
        try:
            return cls.read(folder, top)
        except UserError as error:
            _warn_damaged(error)
        job, overrides = _job_of(folder, top), dict[str, str]()
        with contextlib.suppress(UserError):
            overrides = _read_overrides(job)
        return cls(folder, overrides, {}, job, folder)

    @classmethod
    def _read(cls, folder: Path, top: Path) -> "Row":
        job = _job_of(folder, top)
        values = {current_metric(name): value for name, value in read_json(folder / SUMMARY).items()}
        record = read_json(folder / METRICS)
        _require_types(values, record)
        numbers = {current_metric(number["name"]): number for number in record.get("numbers", [])}
        values |= {name: number["value"] for name, number in numbers.items()}
        fingerprints = {name: current_fingerprint(number["fingerprint"]) for name, number in numbers.items()}
        if not (job / ".hydra").is_dir() and "job" in record:  # an evaluation with an output_folder
            job = Path(record["job"])
        is_training = "run" not in record or (folder / "config.yaml").is_file()  # its folder may have been moved
        run = folder if is_training else Path(record["run"])
        return cls(
            folder, _read_overrides(job), values, job, run, fingerprints, record.get("step"), record.get("evaluations")
        )


def _job_of(folder: Path, top: Path) -> Path:
    """Return the folder of the command that wrote the results in `folder`: itself, or a parent up to `top`."""
    return next((place for place in (folder, *folder.parents) if (place / ".hydra").is_dir() or place == top), top)


def _require_types(summary: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raise ValueError for values of other types than this package writes, with which tables and plots calculate.

    summary, record: content of summary.json and of metrics.json.
    """
    numbers = record.get("numbers", [])
    for name, value in [*summary.items(), *((number["name"], number["value"]) for number in numbers)]:
        if not (value is None or isinstance(value, (int, float, str))) or (name == MINUTES and isinstance(value, str)):
            raise ValueError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= (summary.get(MINUTES) or 0) < LONGEST_MINUTES:  # also NaN
        raise ValueError(f"{MINUTES} must be in [0, {LONGEST_MINUTES}), got {summary[MINUTES]}")
    counts = {"step": record.get("step"), "evaluations": record.get("evaluations")}
    for fingerprint in (number["fingerprint"] for number in numbers):
        counts |= {name: fingerprint.get(name) for name in ("num_samples", "seed")}
        counts |= {"num_steps": (fingerprint.get("sampler") or {}).get("num_steps")}
        for name, count in counts.items():
            if not (count is None or (isinstance(count, int) and abs(count) < 2**63)):
                raise ValueError(f"{name} must be a whole number, got {str(count)[:50]!r}")
    if any("\0" in str(record.get(name)) for name in ("run", "job")):
        raise ValueError("run and job must be paths")


def find_rows(top: Path) -> list[Row]:
    """Read the results in `top` and in all folders below it, in natural order of the folders.

    Folders that cannot be read are left out as by `readable_rows`.
    """
    folders = {path.parent for file in (SUMMARY, METRICS) for path in top.rglob(file)}
    ordered = sorted(folders, key=lambda folder: natural_order(folder.relative_to(top)))
    return readable_rows(lambda folder: [Row.read(folder, top)], ordered)


def readable_rows(read: Callable[[Path], Sequence[Row]], folders: Iterable[Path]) -> list[Row]:
    """Return the rows of all folders; folders that cannot be read are left out with a warning.

    read: function that reads the rows of a folder.  Raises its UserError if no folder can be read.
    """
    rows, errors = list[Row](), list[UserError]()
    for folder in folders:
        try:
            rows += read(folder)
        except UserError as error:
            errors.append(error)
    if errors and not rows:
        raise errors[0]
    for each in errors:
        _warn_damaged(each)
    return rows


def _warn_damaged(error: UserError) -> None:
    logger.warning("%s; the results of this run are left out.", str(error).rstrip("."))


def natural_order(path: Path) -> list[tuple[float, str]]:
    """Return a sort key that orders numbers in a path by value: 2 before 10, and 1e-4 before 0.001."""
    pieces = re.split(r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(path))
    return [(float(piece), "") if number % 2 else (-1.0, piece) for number, piece in enumerate(pieces)]


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file of results; empty if there is no file."""
    content: dict[str, Any] = read_saved_json(path, dict)
    return content


def _read_overrides(folder: Path) -> dict[str, str]:
    path = folder / ".hydra" / "overrides.yaml"
    overrides = current_overrides(list(map(str, read_saved(path, list, interpolations=True)))) if path.is_file() else []
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs if not key.startswith("sweep.")}


def show_used_settings(rows: Sequence[Row], swept: Sequence[str] = ()) -> None:
    """Replace the overrides of each row by the used values of all settings that are overridden or differ.

    Settings without an effect are removed unless they are `swept`. The settings that the fingerprints of an evaluation
    state are those of its fingerprints, and settings that no metric of the evaluation uses have no value.
    """
    read = {folder: _used_settings(folder) for folder in {place for row in rows for place in (row.job, row.run)}}
    overridden = [key for key in override_keys(rows) if key in swept or is_shown(key)]
    different = differing([read[run] for run in dict.fromkeys(row.run for row in rows)])
    for row in rows:
        evaluation = None if row.run == row.folder else read[row.job]
        fingerprints = row.fingerprints | row.left_out
        measured = measured_settings(fingerprints)
        used = read[row.run].used_in(evaluation, row.overrides, overridden, different, measured)
        if evaluation is not None and fingerprints:
            used = {key: used[key] for key in used if key in swept or is_used(key, fingerprints.values())}
        if evaluation is None:  # a run measures its images with a separate sampler
            stated = {key: text for key, text in measured.items() if key in used and key not in (*swept, "seed")}
            used |= stated
        row.overrides = {key: value for key, value in used.items() if value is not None}


def _used_settings(folder: Path) -> UsedSettings:
    """Return the settings in the config files of a folder; none, after a warning, if they cannot be read."""
    try:
        return UsedSettings.read(folder)
    except UserError as error:
        logger.warning("%s; the table shows only the overrides of this run.", str(error).rstrip("."))
        return UsedSettings({}, {}, {})


def override_keys(rows: Sequence[Row]) -> list[str]:
    """Return the keys of all overrides in `rows`, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.overrides))


def number_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of all metrics, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.fingerprints))


def write_table(
    exact: list[dict[str, Any]],
    output: Path,
    name: str,
    *,
    always: Sequence[str],
    hidden: Sequence[str] = (),
    num_labels: int = 1,
) -> None:
    """Write rows to output/NAME.csv; write the rows with rounded values to output/NAME.md and print them.

    The rounded table has only columns whose values differ.  always: columns that are shown even if all their values are
    equal.  hidden: columns of the CSV file only.  num_labels: see `print_rows`.
    """
    names = list(dict.fromkeys(key for row in exact for key in row if key != MINUTES))
    columns = [*names, *[DURATION] * any(MINUTES in row for row in exact)]
    output.mkdir(parents=True, exist_ok=True)
    write_csv_dicts(output / f"{name}.csv", exact)
    rounded = [_as_texts(row) for row in exact]
    varying = [column for column in columns if len({row.get(column) for row in rounded}) > 1 or column in always]
    candidates = varying if len(rounded) > 1 else columns
    shown = [column for column in candidates if column not in hidden]
    lines = [shown, *([row.get(column, "") for column in shown] for row in rounded)]
    with atomic_file(output / f"{name}.md") as partial:
        partial.write_text(markdown(lines), encoding="utf-8")
    print_rows(lines, f"{len(exact)} runs in {output}", num_labels)


def _as_texts(row: dict[str, Any]) -> dict[str, str]:
    """Return the rounded values of a row; a number of minutes becomes a duration, such as 0:01:15."""
    given = {column: value for column, value in row.items() if value is not None}
    texts = {column: round_value(value) for column, value in given.items() if column != MINUTES}
    return texts | ({DURATION: format_duration(60 * given[MINUTES])} if MINUTES in given else {})


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.  lines: column names, followed by the cells of each row."""
    escaped = [[markdown_text(cell) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in (escaped[0], ["---"] * len(lines[0]), *escaped[1:]))


def markdown_text(text: str) -> str:
    """Return a text in one line, in which Markdown finds no end of a table cell and no HTML element."""
    return terminal_text(text).replace("|", "\\|").replace("<", "&lt;")


def cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the cells of each row of a table: column name -> value.

    The cells are the folder, the settings and the results of the row. The columns `trained` (the measured run) or
    `images` (the measured images of unknown origin) and `training_step` are included only if the rows are evaluations
    and the values differ. `evaluations` is the number of evaluations of the network for one image, which determines the
    cost of a sampler.
    """
    folders = short_paths(row.folder for row in rows)
    # The measured run of an evaluation that has failed is not known.
    runs = short_paths([row.run for row in rows if row.values or row.run != row.folder] or folders)
    are_evaluations = any(row.run != row.folder for row in rows)
    names_run = are_evaluations and len(runs) > 1
    steps_vary = are_evaluations and len({row.training_step for row in rows}) > 1
    return [
        {"run": folders[row.folder]}
        | ({"images" if row.is_of_images else "trained": runs[row.run]} if names_run and row.run in runs else {})
        | ({"training_step": row.training_step} if steps_vary and row.training_step is not None else {})
        | {key: value for key, value in row.overrides.items() if key not in ("run", "images", "images.content")}
        | ({} if row.evaluations is None else {"evaluations": row.evaluations})
        | row.values
        for row in rows
    ]


def short_paths(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the path of each folder relative to the deepest folder that contains all of them."""
    full = {path: os.path.abspath(path) for path in paths}
    top = os.path.commonpath([os.path.dirname(path) for path in full.values()])
    return {path: os.path.relpath(text, top) for path, text in full.items()}


def round_value(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)

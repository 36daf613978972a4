"""Writing of results to a run folder: a summary, and the metric values with their fingerprints."""

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from diffusion_lab import __version__
from diffusion_lab.errors import UserError
from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.fingerprints import flat
from diffusion_lab.paths import IS_CHECKOUT
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.reporting.text_tables import LONGEST_CELL, print_table
from diffusion_lab.runs.settings.measured import shown_name, shown_text
from diffusion_lab.runs.tables.table import METRICS, SUMMARY, read_json

PAPER_FEATURES = ("inception", "dinov2", "clip")
"""Feature networks of published values: of FID and related metrics, of the FD-DINOv2, and of the CMMD."""

PAPER_SAMPLES = 50_000
"""Number of samples for which papers state metric values."""

PRINTED = (
    *("sampler.name", "sampler.num_steps", "guidance_scale", "guidance.interval", "guidance.rescale"),
    *("guidance.num_channels", "classifier_scale", "weights.name", "label", "seed", "precision"),
    *("images.origin", "preparation.fit", "num_results", "task.name", "task.noise", "task.strength"),
    *("task.mask.name", "task.posterior.name", "task.pasted"),
)
"""Fingerprint fields that an evaluation prints."""


SUMMARY_FIELDS = ("steps", "loss", "images_per_second", "minutes")
"""Fields of summary.json that every run has. Some runs also have accuracies or a Fréchet distance."""


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`, from which tables of many runs are made.  Values that are not finite become null."""
    _write(folder / SUMMARY, {key: _finite_or_none(value) for key, value in summary.items()})


def write_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Write `metrics.json`.  record["numbers"]: a dict with name, value and fingerprint for each metric value."""
    numbers = [number | {"value": _finite_or_none(number["value"])} for number in record["numbers"]]
    _write(folder / METRICS, record | {"numbers": numbers, "code": __version__, "commit": _commit()})


def keep_earlier(folder: Path, num_steps: int) -> None:
    """Rename the results of an earlier end of a run, after another number of steps: `metrics_step_0000500.json`.

    A run that is trained further would replace them.
    """
    for name, key in ((METRICS, "step"), (SUMMARY, "steps")):
        earlier = read_json(folder / name).get(key, num_steps)
        if not isinstance(earlier, int):  # part of a path
            raise UserError(f"{folder / name} must have a whole number as `{key}`, got {str(earlier)[:100]!r}.")
        if earlier != num_steps:
            (folder / name).rename(folder / f"{Path(name).stem}_step_{earlier:07}.json")


def earlier_ends(folder: Path) -> list[dict[str, Any]]:
    """Return the summaries of the earlier ends of a run, with increasing numbers of steps."""
    return [read_json(path) for path in sorted(folder.glob(f"{Path(SUMMARY).stem}_step_*.json"))]


def _commit() -> str | None:
    """Return the git commit of this package, followed by + if files are modified; None outside of a git checkout."""
    if not IS_CHECKOUT:  # the environment of an installed package may lie in the repository of another project
        return None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_numbers(record: Mapping[str, Any]) -> None:
    """Print a table of the metric values, their main settings, the durations and the peak memory of one evaluation."""
    from diffusion_lab.evaluation.number import Number  # imports torch

    # Not as the title of the table, which rich would break at the width of the table
    print(terminal_text(_measured(record, str(record["run"]))))
    table = Table("metric", "value", "meaning")
    for number in record["numbers"]:
        table.add_row(terminal_text(number["name"]), f"{number['value']:.6g}", Number(**number).description)
    table.add_section()
    for name, text in _main_settings(record["numbers"]).items():
        table.add_row(terminal_text(name), terminal_text(text, LONGEST_CELL))
    table.add_section()
    if comparability := comparability_with_papers(record["numbers"]):
        table.caption = comparability
    for part, seconds in record["seconds"].items():
        table.add_row(terminal_text(f"seconds in {part}"), f"{seconds:,.1f}")
    table.add_row("peak memory, GB", f"{record['peak_memory_gb']:.2f}")
    print_table(table)


def print_line(record: Mapping[str, Any]) -> None:
    """Print the metric values of one evaluation in one line."""
    numbers = [number for number in record["numbers"] if "_std_" not in number["name"]]
    values = ", ".join(f"{number['name']} {number['value']:.6g}" for number in numbers) or "no metrics"
    print(terminal_text(f"{_measured(record, Path(record['run']).name)}: {values}"), flush=True)


def _measured(record: Mapping[str, Any], name: str) -> str:
    """Return what was measured, as text: a checkpoint, or images without one.  name: name of the run or the images."""
    is_run = record["checkpoint"] is not None
    return f"{name}, {record['checkpoint']}, step {record['step']:,}" if is_run else f"images of {name}"


def comparability_with_papers(numbers: Sequence[Mapping[str, Any]]) -> str | None:
    """Return whether the features and the number of samples are those of papers, as text; None for likelihoods."""
    measured = [number["fingerprint"] for number in numbers if "features" in number["fingerprint"]]
    if not measured:
        return None
    names = dict.fromkeys(fingerprint["features"]["name"] for fingerprint in measured)
    num_samples = min(fingerprint["num_samples"] for fingerprint in measured)
    reasons = [f"features {name}" for name in names if name not in PAPER_FEATURES]
    reasons += [f"{num_samples:,} samples"] if num_samples < PAPER_SAMPLES else []
    if reasons:
        return f"not comparable with papers: {', '.join(reasons)}"
    return f"comparable with papers that use the same reference images and features ({', '.join(names)})"


def _main_settings(numbers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the main settings with which metric values were measured, as text, by the names that tables show."""
    fields: dict[str, Any] = {}
    for number in numbers:
        fields |= flat(number["fingerprint"])
    return {shown_name(field): shown_text(field, fields[field]) for field in PRINTED if field in fields}


def print_done(folder: Path, step: int, *, is_open_ended: bool) -> float | None:
    """Print that all steps of a run are done, and return the value that a search minimizes, as `Summary.objective`.

    step: number of steps.  is_open_ended: whether the run can be continued with more steps.
    """
    fork = "" if is_open_ended else "fork=true (a schedule ends with the run) and "
    further = f"set {fork}trainer.max_steps above {step} to train further"
    print(f"nothing left to do: all {step:,} steps of {folder} are complete; {further}.")
    content: dict[str, float | None] = read_json(folder / SUMMARY)
    # The name of the metric value depends on how it was measured. Accuracies of a classifier are not used.
    values = [v for name, v in content.items() if name not in SUMMARY_FIELDS and not name.startswith("accuracy_")]
    if not values or values[-1] is None:
        return content.get("loss")
    numbers = read_json(folder / METRICS).get("numbers", [])
    higher_is_better = bool(numbers) and numbers[0].get("higher_is_better", False)
    return -values[-1] if higher_is_better else values[-1]

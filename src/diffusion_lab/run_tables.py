"""What runs came to: a summary and the measured numbers in each folder, and one table of many."""

import csv
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from diffusion_lab.fingerprints import UnlikeNumbersError, covered_by, differences, require_alike

SUMMARY, METRICS = "summary.json", "metrics.json"


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """What a run came to, for tables of many runs: `summary.json`. A number that is not finite is null there."""
    _write(folder / SUMMARY, {key: _finite(value) for key, value in summary.items()})


def write_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Numbers with their protocol: `metrics.json`.  record["numbers"]: each with name, value and fingerprint."""
    numbers = [number | {"value": _finite(number["value"])} for number in record["numbers"]]
    _write(folder / METRICS, record | {"numbers": numbers, "commit": _commit()})


def _commit() -> str | None:
    """Of this code, with a plus where it was changed since; None where it is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_numbers(record: Mapping[str, Any]) -> None:
    """A table of the numbers of one evaluation, of its time and its memory."""
    table = Table("number", "value", title=f"{record['run']}, {record['checkpoint']}, step {record['step']:,}")
    for number in record["numbers"]:
        table.add_row(number["name"], f"{number['value']:.6g}")
    table.add_section()
    for part, seconds in record["seconds"].items():
        table.add_row(f"seconds in {part}", f"{seconds:,.1f}")
    table.add_row("peak memory, GB", f"{record['peak_memory_gb']:.2f}")
    _print(table)


@dataclass
class Row:
    """One measured folder.  overrides: what the command line said of it.  fingerprints: of its numbers, by name.

    training_step: of the checkpoint, where it is known.
    """

    folder: Path
    overrides: dict[str, str]
    values: dict[str, Any]
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    run: str = ""
    training_step: int | None = None

    @classmethod
    def read(cls, folder: Path, top: Path) -> "Row":
        """What a folder below `top` holds."""
        job = next((place for place in (folder, *folder.parents) if (place / ".hydra").is_dir() or place == top), top)
        values = _json(folder / SUMMARY)
        record = _json(folder / METRICS)
        numbers = {number["name"]: number for number in record.get("numbers", [])}
        values |= {name: number["value"] for name, number in numbers.items()}
        fingerprints = {name: number["fingerprint"] for name, number in numbers.items()}
        run, step = Path(record.get("run", folder)).name, record.get("step")
        return cls(folder, _overrides(job), values, fingerprints, run, step)


class SweepTable(Callback):
    """Hydra callback: at the end of a multirun, one line for each run."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        show_sweep(folder, config.get("allow", ()))


def show_sweep(folder: Path, allowed: Iterable[str] = ()) -> bool:
    """`show_table` of a sweep's runs, of which all that was swept may differ."""
    rows = rows_below(folder)
    swept = [key for key in _keys(rows) if len({row.overrides.get(key) for row in rows}) > 1]
    return show_table([folder], folder, "sweep", swept=swept, allowed=allowed)


def show_table(
    folders: Sequence[Path], output: Path, name: str, *, swept: Iterable[str] = (), allowed: Iterable[str] = ()
) -> bool:
    """Prints and writes one table of all that was measured below some folders, with its plots.

    Written to output/NAME.csv and .md. What was swept decides what may differ, beside the fields `allowed`. A number
    that was made in unlike ways is left out, with a sentence; returns whether there was none.
    """
    rows = [row for folder in folders for row in rows_below(folder)]
    if not rows:
        return True
    refusals = _leave_out_unlike(rows, [*covered_by(swept), *allowed])
    _warn_of_shared_images(rows)
    _write_table(rows, output, name)
    _plot(rows, output)
    for refusal in refusals:
        print(f"error: {refusal}: python src/compare.py 'numbers=[{','.join(map(str, folders))}]'.", file=sys.stderr)
    return not refusals


def rows_below(top: Path) -> list[Row]:
    """The measured folders at or below a folder, in the order of their numbers."""
    found = {path.parent for file in (SUMMARY, METRICS) for path in top.rglob(file)}
    return [Row.read(folder, top) for folder in sorted(found, key=lambda folder: _order(folder.relative_to(top)))]


def _order(path: Path) -> list[tuple[int, str]]:
    numbers = (part.partition("_")[0] for part in path.parts)
    return [(int(n) if n.isdigit() else -1, part) for n, part in zip(numbers, path.parts, strict=True)]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _overrides(folder: Path) -> dict[str, str]:
    path = folder / ".hydra" / "overrides.yaml"
    words = [str(word) for word in OmegaConf.load(path)] if path.is_file() else []
    return dict(word.partition("=")[::2] for word in words)


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.overrides))


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.fingerprints))


def _leave_out_unlike(rows: list[Row], allowed: list[str]) -> list[str]:
    """Removes the numbers that must not stand beside each other; why, a sentence each."""
    refusals = []
    for name in _names(rows):
        owners = {str(row.folder): row.fingerprints[name] for row in rows if name in row.fingerprints}
        try:
            require_alike(name, owners, allowed)
        except UnlikeNumbersError as error:
            refusals.append(str(error))
            for row in rows:
                row.values.pop(name, None)
                row.fingerprints.pop(name, None)
    return refusals


def _warn_of_shared_images(rows: Sequence[Row]) -> None:
    """Image k of seed s has noise seed s + k: sets of near seeds are nearly one set."""
    for name in _names(rows):
        for one, other in itertools.combinations([row for row in rows if name in row.fingerprints], 2):
            prints = one.fingerprints[name], other.fingerprints[name]
            if one.run != other.run or list(differences(prints)) != ["seed"]:
                continue
            shared = prints[0]["num_samples"] - abs(prints[0]["seed"] - prints[1]["seed"])
            if shared > 0:
                print(
                    f"note: {name} of seed={prints[0]['seed']} and seed={prints[1]['seed']} share {shared:,} of their "
                    f"{prints[0]['num_samples']:,} noises; sets are disjoint where seeds are num_samples apart.",
                    file=sys.stderr,
                )
                break


def _write_table(rows: Sequence[Row], output: Path, name: str) -> None:
    exact = [_cells(row, rows) for row in rows]
    columns = list(dict.fromkeys(key for row in exact for key in row))
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(exact)
    cells = [{column: _short(value) for column, value in row.items()} for row in exact]
    # What is the same in all runs tells them apart in the file at most.
    always = ["run", *_names(rows)]
    varying = [column for column in columns if len({row.get(column) for row in cells}) > 1 or column in always]
    shown = varying if len(cells) > 1 else columns
    shown = [column for column in shown if "_std_" not in column]
    lines = [shown, ["---"] * len(shown), *([row.get(column, "") for column in shown] for row in cells)]
    (output / f"{name}.md").write_text("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    _print_lines([lines[0], *lines[2:]], f"{len(rows)} runs in {output}")


def _cells(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """A row: which it is, what was asked of it, and what it came to."""
    first: dict[str, Any] = {"run": row.folder.name.partition("_")[0]}
    if not re.fullmatch(r"\d+_.*", row.folder.name):
        first["run"] = str(row.folder)
    if len({other.run for other in rows}) > 1:
        first["trained"] = row.run
    if len({other.training_step for other in rows}) > 1 and row.training_step is not None:
        first["training_step"] = row.training_step
    return {**first, **{key: value for key, value in row.overrides.items() if key != "run"}, **row.values}


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _plot(rows: Sequence[Row], output: Path) -> None:
    """Every number against the steps of sampling and of training, where these vary."""
    for axis, label in (("sampling_steps", "steps of the sampler"), ("training_step", "training step")):
        panels = {name: _lines(rows, name, axis) for name in _names(rows) if "_std_" not in name}
        several = {name: lines for name, lines in panels.items() if any(len(dict(p)) > 1 for p in lines.values())}
        if several:
            from diffusion_lab import plots

            plots.save_lines(several, label, output / f"against_{axis}.png")


def _lines(rows: Sequence[Row], name: str, axis: str) -> dict[str, list[tuple[float, float]]]:
    """Points of one number, a line for all that differs in anything but the axis."""
    own = [row for row in rows if isinstance(row.values.get(name), float) and name in row.fingerprints]
    varying = [key for key in _keys(own) if len({row.overrides.get(key) for row in own}) > 1]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in own:
        sampler = row.fingerprints[name].get("sampler") or {}
        x = sampler.get("num_steps") if axis == "sampling_steps" else row.training_step
        if x is None:
            continue
        words = [f"{key}={row.overrides[key]}" for key in varying if key in row.overrides and _apart(key, axis)]
        if axis == "sampling_steps" and len({other.run for other in own}) > 1 and "run" not in varying:
            words.insert(0, row.run)
        lines.setdefault(" ".join(words), []).append((float(x), row.values[name]))
    return {line: sorted(points) for line, points in lines.items()}


def _apart(key: str, axis: str) -> bool:
    """Whether a setting makes another line, and not another point of the same."""
    return (
        key != "sampler.num_steps"
        if axis == "sampling_steps"
        else key not in ("run", "checkpoint", "trainer.max_steps")
    )


def _print_lines(lines: list[list[str]], title: str) -> None:
    """A table whose first line is its head; turned on its side where it is wider than long."""
    if len(lines[0]) > max(9, len(lines)):
        lines = [list(column) for column in zip(*lines, strict=True)]
    table = Table(title=title)
    for head in lines[0]:
        table.add_column(head, overflow="fold")
    for line in lines[1:]:
        table.add_row(*line)
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)

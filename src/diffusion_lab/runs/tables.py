"""One table of what many runs came to, and plots of it."""

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffusion_lab.config.earlier_versions import current_fingerprint, current_overrides
from diffusion_lab.fingerprints import IncomparableError, differences, fields_set_by, require_comparable

SUMMARY, METRICS = "summary.json", "metrics.json"


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
        fingerprints = {name: current_fingerprint(number["fingerprint"]) for name, number in numbers.items()}
        run, step = Path(record.get("run", folder)).name, record.get("step")
        return cls(folder, _overrides(job), values, fingerprints, run, step)


def write_and_print_table(
    folders: Sequence[Path], output: Path, name: str, *, swept: Iterable[str] = (), allowed: Iterable[str] = ()
) -> bool:
    """Prints and writes one table of all that was measured below some folders, with its plots.

    Written to output/NAME.csv and .md. What was swept decides what may differ, beside the fields `allowed`. A number
    that was made in unlike ways is left out, with a sentence; returns whether there was none.
    """
    rows = [row for folder in folders for row in find_rows(folder)]
    if not rows:
        return True
    alike = drop_incomparable(rows, [*fields_set_by(swept), *allowed], folders)
    write_table([cells(row, rows) for row in rows], output, name, always=["run", *names(rows)])
    plot_steps(rows, output)
    return alike


def drop_incomparable(rows: list[Row], allowed: Sequence[str], folders: Sequence[Path]) -> bool:
    """Leaves out the numbers that must not stand beside each other, with a sentence each; whether there were none."""
    refusals = _leave_out_unlike(rows, list(allowed))
    _warn_of_shared_images(rows)
    for refusal in refusals:
        print(f"error: {refusal}: python src/compare.py 'numbers=[{','.join(map(str, folders))}]'.", file=sys.stderr)
    return not refusals


def find_rows(top: Path) -> list[Row]:
    """The measured folders at or below a folder, in the order of their numbers."""
    found = {path.parent for file in (SUMMARY, METRICS) for path in top.rglob(file)}
    return [
        Row.read(folder, top) for folder in sorted(found, key=lambda folder: natural_order(folder.relative_to(top)))
    ]


def natural_order(path: Path) -> list[tuple[float, str]]:
    """A sorting key in which 2 comes before 10, and 1e-4 before 0.001."""
    pieces = re.split(r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(path))
    return [(float(piece), "") if number % 2 else (-1.0, piece) for number, piece in enumerate(pieces)]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _overrides(folder: Path) -> dict[str, str]:
    path = folder / ".hydra" / "overrides.yaml"
    words = current_overrides([str(word) for word in OmegaConf.load(path)]) if path.is_file() else []
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in pairs if not key.startswith("sweep.")}


def keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.overrides))


def names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.fingerprints))


def _leave_out_unlike(rows: list[Row], allowed: list[str]) -> list[str]:
    """Removes the numbers that must not stand beside each other; why, a sentence each."""
    refusals = []
    for name in names(rows):
        owners = {str(row.folder): row.fingerprints[name] for row in rows if name in row.fingerprints}
        try:
            require_comparable(name, owners, allowed)
        except IncomparableError as error:
            refusals.append(str(error))
            for row in rows:
                row.values.pop(name, None)
                row.fingerprints.pop(name, None)
    return refusals


def _warn_of_shared_images(rows: Sequence[Row]) -> None:
    """Image k of seed s has noise seed s + k: sets of near seeds are nearly one set."""
    for name in names(rows):
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


def write_table(
    exact: list[dict[str, Any]], output: Path, name: str, *, always: Sequence[str], hidden: Sequence[str] = ()
) -> None:
    """Writes rows to output/NAME.csv as they are, and to .md and the terminal in short.

    always: columns that are shown also where they are the same in all rows.  hidden: those in the first file alone.
    """
    columns = list(dict.fromkeys(key for row in exact for key in row))
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(exact)
    cells = [{column: _short(value) for column, value in row.items() if value is not None} for row in exact]
    varying = [column for column in columns if len({row.get(column) for row in cells}) > 1 or column in always]
    shown = [
        column for column in (varying if len(cells) > 1 else columns) if "_std_" not in column and column not in hidden
    ]
    lines = [shown, ["---"] * len(shown), *([row.get(column, "") for column in shown] for row in cells)]
    (output / f"{name}.md").write_text("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    print_rows([lines[0], *lines[2:]], f"{len(exact)} runs in {output}")


def cells(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """A row: which it is, what was asked of it, and what it came to."""
    first: dict[str, Any] = {"run": str(row.folder)}
    if len({other.run for other in rows}) > 1:
        first["trained"] = row.run
    if len({other.training_step for other in rows}) > 1 and row.training_step is not None:
        first["training_step"] = row.training_step
    return {**first, **{key: value for key, value in row.overrides.items() if key != "run"}, **row.values}


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def plot_steps(rows: Sequence[Row], output: Path) -> None:
    """Every number against the steps of sampling and of training, where these vary."""
    for axis, label in (("sampling_steps", "steps of the sampler"), ("training_step", "training step")):
        panels = {name: _lines(rows, name, axis) for name in names(rows) if "_std_" not in name}
        several = {name: lines for name, lines in panels.items() if any(len(dict(p)) > 1 for p in lines.values())}
        if several:
            from diffusion_lab.reporting import plots

            plots.save_lines(several, label, output / f"against_{axis}.png")


def _lines(rows: Sequence[Row], name: str, axis: str) -> dict[str, list[tuple[float, float]]]:
    """Points of one number, a line for all that differs in anything but the axis."""
    own = [row for row in rows if isinstance(row.values.get(name), float) and name in row.fingerprints]
    varying = [key for key in keys(own) if len({row.overrides.get(key) for row in own}) > 1]
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


def print_rows(lines: list[list[str]], title: str) -> None:
    """Prints a table whose first line is its head; turned on its side where it is wider than long."""
    if len(lines[0]) > max(9, len(lines)):
        lines = [list(column) for column in zip(*lines, strict=True)]
    table = Table(title=Text(title))
    for head in lines[0]:
        table.add_column(Text(head), overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(Text, line))  # what stands in brackets is no markup
    print_table(table)


def print_table(table: Table) -> None:
    """Prints a table, in a file as wide as it takes."""
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)

"""Plots of the results of many runs: against sampling steps or training steps, or with one point per run."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.config.earlier_versions import current_metric
from diffusion_lab.runs.settings.measured import is_used
from diffusion_lab.runs.tables.table import METRICS, Row, number_names, override_keys, read_json, short_paths

logger = logging.getLogger(__name__)


def plot_steps(rows: Sequence[Row], output: Path) -> bool:
    """Plot each metric against the number of sampling steps and against the training step, if these vary.

    If the steps of different samplers take different numbers of evaluations of the network, these numbers replace the
    numbers of sampling steps. Returns whether one of the numbers varies. A line may be a single point.
    """
    found = False
    steps = ("sampling_steps", "sampling steps")
    if _steps_differ_in_cost(rows):
        steps = ("evaluations", "evaluations of the network for one image")
    for axis, label in (steps, ("training_step", "training step")):
        panels = {name: _lines(rows, name, axis) for name in number_names(rows) if "_std_" not in name}
        varying = {
            name: lines for name, lines in panels.items() if len({x for line in lines.values() for x, _ in line}) > 1
        }
        if varying:
            from diffusion_lab.reporting import plots

            titled = {title(rows, name): lines for name, lines in varying.items()}
            plots.save_lines(titled, label, output / f"against_{axis}.png")
            found = True
    return found


def _steps_differ_in_cost(rows: Sequence[Row]) -> bool:
    """Return whether several samplers were measured whose steps take different numbers of evaluations."""
    fingerprints = [(row, next(filter(None, map(_sampler, row.fingerprints.values())), {})) for row in rows]
    measured = [(row.evaluations, sampler) for row, sampler in fingerprints if sampler]
    if not all(evaluations and sampler.get("num_steps") for evaluations, sampler in measured):
        return False
    per_step = {evaluations / sampler["num_steps"] for evaluations, sampler in measured if evaluations}
    return len(per_step) > 1 and len({sampler["name"] for _, sampler in measured}) > 1


def _sampler(fingerprint: dict[str, Any]) -> dict[str, Any]:
    return fingerprint.get("sampler") or {}


def plot_runs(rows: Sequence[Row], output: Path) -> None:
    """Plot each metric whose values differ with one point per row, in the order of the rows.

    The rows are labeled with the settings in which they differ, or with their folders if these are not sufficient.
    """
    labels = _row_labels(rows)
    panels, left_out = {}, []
    for name in [name for name in number_names(rows) if "_std_" not in name]:
        found = {label: row.values.get(name) for label, row in zip(labels, rows, strict=True)}
        values = {label: value for label, value in found.items() if isinstance(value, float)}
        if len(set(values.values())) > 1:
            panels[title(rows, name)] = values
        else:
            left_out.append(name)
    if left_out and len(rows) > 1:
        logger.info("not plotted, because the table has no different values: %s.", ", ".join(left_out))
    if panels:
        from diffusion_lab.reporting import plots

        plots.save_by_run(panels, labels, output / "against_run.png")


def _row_labels(rows: Sequence[Row]) -> list[str]:
    folders = short_paths(row.folder for row in rows)
    keys = [key for key in override_keys(rows) if len({row.overrides.get(key) for row in rows}) > 1 and key != "run"]
    runs_vary, steps_vary = len({row.run for row in rows}) > 1, len({row.training_step for row in rows}) > 1
    return _shortest(
        [
            (
                folders[row.folder],
                *(f"{key}={row.overrides[key]}" if key in row.overrides else "" for key in keys),
                row.run.name * runs_vary,
                f"training_step={row.training_step}" * steps_vary,
            )
            for row in rows
        ]
    )


def title(rows: Sequence[Row], name: str) -> str:
    """Return the title of a plot of a metric: its name, and whether a higher or a lower value is better."""
    for row in (row for row in rows if name in row.fingerprints):
        for number in read_json(row.folder / METRICS).get("numbers", []):
            if current_metric(number["name"]) == name and number.get("higher_is_better"):
                return f"{name}\n(higher is better)"
    return f"{name}\n(lower is better)"


def _lines(rows: Sequence[Row], name: str, axis: str) -> dict[str, list[tuple[float, float]]]:
    """Return label -> points (x, metric value) of each line in a plot of the metric `name`.

    Each combination of all other settings that affect the metric has its own line. A line with a single point is also
    labeled with its number of sampling steps if the x axis is the number of evaluations.
    axis: quantity on the x axis, "sampling_steps", "evaluations" or "training_step".
    """
    measured = [row for row in rows if isinstance(row.values.get(name), float) and name in row.fingerprints]
    fingerprints = [row.fingerprints[name] for row in measured]
    used = [key for key in override_keys(measured) if is_used(key, fingerprints)]
    varying = [key for key in used if len({row.overrides.get(key) for row in measured}) > 1]
    num_steps: dict[tuple[str, ...], int] = {}
    points: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    names_run = axis != "training_step" and len({row.run for row in measured}) > 1 and "run" not in varying
    for row in measured:
        sampler = _sampler(row.fingerprints[name])
        x = {
            "sampling_steps": sampler.get("num_steps"),
            "evaluations": row.evaluations if sampler else None,
            "training_step": row.training_step,
        }[axis]
        if x is None:
            continue
        settings = [key for key in varying if _separates(key, axis)]
        parts = [f"{key}={row.overrides[key]}" if key in row.overrides else "" for key in settings]
        line = (row.run.name * names_run, *parts)
        points.setdefault(line, []).append((float(x), row.values[name]))
        num_steps[line] = sampler.get("num_steps", 0)
    lines = {}
    for label, line in zip(_shortest(list(points)), points, strict=True):
        is_named = axis == "evaluations" and len(points[line]) == 1 and num_steps[line]
        lines[f"{label} ({num_steps[line]} steps)" if is_named else label] = sorted(points[line])
    return lines


def _shortest(labels: Sequence[tuple[str, ...]]) -> list[str]:
    """Return each label without the parts that are not needed to tell the labels apart.

    labels: parts of each label, such as ("a", "sampler=ddim", ""), in the same order of settings. The first part, the
        run, is left out first, and then the other parts from the last to the second.
    """
    kept = list(range(len(labels[0]))) if labels else []
    for number in [*kept[:1], *reversed(kept[1:])]:
        shorter = [tuple(label[k] for k in kept if k != number) for label in labels]
        if len(set(shorter)) == len(labels) and (len(labels) == 1 or all(map(any, shorter))):
            kept.remove(number)
    return [" ".join(filter(None, (label[k] for k in kept))) for label in labels]


def _separates(key: str, axis: str) -> bool:
    """Return whether different values of a setting belong to different lines, and not to different points of a line."""
    if axis != "training_step":
        return key != "sampler.num_steps"
    return key not in ("run", "checkpoint", "trainer.max_steps")

"""Functions that plot numbers and arrays to PNG files."""

import itertools
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from torch import Tensor

from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.reporting.csv_files import write_csv
from diffusion_lab.reporting.image_grids import grid
from diffusion_lab.reporting.text import plot_text

matplotlib.use("Agg")  # writes files and needs no display

from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

Panel = TypeVar("Panel")

MAX_PANELS = 60
"""Largest number of panels of a figure; the layout of thousands of metrics, for example of other people, never ends."""

MARKERS = "osD^v"
"""Markers of lines with the same color."""


def save_bound(terms: Sequence[float], steps: Sequence[float], path: Path) -> None:
    """Write the terms of the variational bound to a CSV file, and plot them as in figure 2 of Nichol & Dhariwal (2021).

    terms: L_0, ..., L_{T-1}, L_T in bits per dimension.  steps: times t of the terms L_0, ..., L_{T-1}.
    path: CSV file; the plot is the PNG file with the same stem.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [[f"L_{k}", t, term] for k, (t, term) in enumerate(zip([*steps, steps[-1]], terms, strict=True))]
    write_csv(path, ["term", "t", "bits_per_dimension"], rows)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, terms[:-1])
    axes.set(xlabel="t", ylabel="bits/dim", yscale="log", title=f"terms of the bound, sum {sum(terms):.3f} bits/dim")
    axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    pyplot.close(figure)


def save_lines(panels: dict[str, dict[str, list[tuple[float, float]]]], xlabel: str, path: Path) -> None:
    """Plot lines through points (x, metric value) to a PNG file, with one panel per metric.

    The x axis is logarithmic. The y axis is logarithmic if all values are positive, the values span more than a factor
    of 10, and the largest value exceeds 1.
    panels: metric name -> line name -> points with increasing x.
    """
    panels = _first(panels)
    figure, axes = _grid_of_panels(len(panels))
    styles = _styles(panels.values())
    for panel, (name, lines) in zip(axes, panels.items(), strict=True):
        for label, points in lines.items():
            panel.plot(*zip(*points, strict=True), label=plot_text(label), **styles[label])
        values = [y for points in lines.values() for _, y in points]
        is_log = _spans_decade(values) and max(values) > 1  # fractions are at most 1
        panel.set(title=plot_text(name), xlabel=plot_text(xlabel), xscale="log", yscale="log" if is_log else "linear")
        ticks = _apart({x for points in lines.values() for x, _ in points})
        panel.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    _add_legend(figure, axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, path)


def _styles(panels: Iterable[Iterable[str]]) -> dict[str, dict[str, Any]]:
    """Return the color and the marker of each line by its label; the panels share a legend, but may lack lines."""
    labels = dict.fromkeys(label for lines in panels for label in lines)
    return {
        label: {"color": f"C{number % 10}", "marker": MARKERS[number // 10 % len(MARKERS)]}
        for number, label in enumerate(labels)
    }


def _apart(values: set[float]) -> list[float]:
    """Return the values in increasing order, without those whose labels would overlap on a logarithmic axis."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value > 1.15 * kept[-1]:
            kept.append(value)
    return kept


def save_curves(panels: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Plot values against the training step to a PNG file, with one panel per metric.

    The x axis starts at step 0. The y axis is logarithmic if all values are positive and span more than a factor of 10.
    panels: metric name -> points (step, value) with increasing steps.
    """
    panels = _first(panels)
    figure, axes = _grid_of_panels(len(panels))
    for panel, (name, points) in zip(axes, panels.items(), strict=True):
        panel.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None)
        is_log = _spans_decade([y for _, y in points])
        panel.set(title=plot_text(name), xlabel="training step", yscale="log" if is_log else "linear")
        panel.set_xlim(0, 1.05 * max(1, points[-1][0]))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    _save(figure, path)


def _spans_decade(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > 10 * min(values)


def save_against(
    panels: dict[str, dict[str, list[tuple[str, float, float]]]], xlabel: str, order: Sequence[str], path: Path
) -> None:
    """Plot metric values against the values of one setting to a PNG file, with one panel per metric.

    If all values of the setting are numbers, the x axis is numeric, and logarithmic if they are positive and span more
    than a factor of 20. Other values are spaced evenly, in the given order.
    panels: title -> label of a line -> points (value of the setting, mean, standard deviation); 0: no error bar.
    order: all values of the setting.
    """
    panels = _first(panels)
    figure, axes = _grid_of_panels(len(panels))
    styles = _styles(panels.values())
    positions, is_numeric = _positions(list(order)), _are_numeric(list(order))
    low, high = min(positions.values()), max(positions.values())
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for number, (label, points) in enumerate(lines.items()):
            x, mean, std = zip(*sorted((positions[value], mean, std) for value, mean, std in points), strict=True)
            distance = 0.0 if is_numeric else min(0.06, 0.5 / len(lines))  # so that error bars do not overlap
            shift = distance * (number - (len(lines) - 1) / 2)
            style = {**styles[label], "capsize": 3, "linestyle": "-" if is_numeric else ":", "label": plot_text(label)}
            panel.errorbar([value + shift for value in x], mean, std if any(std) else None, **style)
        is_log = is_numeric and low > 0 and high > 20 * low
        panel.set(title=plot_text(title), xlabel=plot_text(xlabel), xscale="log" if is_log else "linear")
        ticks = list(map(plot_text, positions))
        panel.set_xticks(list(positions.values()), ticks, minor=False)
        if sum(map(len, ticks)) > 50:
            panel.tick_params("x", rotation=20)
        panel.minorticks_off()
        panel.margins(x=0.15)
        panel.grid(alpha=0.3)
    _add_legend(figure, axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, path)


def save_by_run(panels: dict[str, dict[str, float]], order: Sequence[str], path: Path) -> None:
    """Plot one metric value of each run to a PNG file, with one panel per metric and the runs from top to bottom.

    panels: title -> name of the run -> value.  order: names of all runs.
    """
    runs = [run for run in order if any(run in values for values in panels.values())]
    panels = _first(panels)
    figure, axes = _grid_of_panels(len(panels))
    width, height = figure.get_size_inches()
    names = list(map(plot_text, runs))
    figure.set_size_inches(width + 0.08 * max(map(len, names)), max(height, (0.25 * len(runs) + 1) * height / 3.8))
    for number, (panel, (title, values)) in enumerate(zip(axes, panels.items(), strict=True)):
        panel.plot(list(values.values()), [runs.index(run) for run in values], "o")
        is_first = number % 3 == 0  # the panels of a row have the same runs
        panel.set_yticks(range(len(runs)), names if is_first else [""] * len(runs))
        panel.set(title=plot_text(title), ylim=(len(runs) - 0.5, -0.5))
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """Write a figure to a PNG file and close it. Characters that the font lacks become boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from")
        with atomic_file(path) as partial:
            figure.savefig(partial, dpi=130, format="png")
    pyplot.close(figure)


def _add_legend(figure: Any, axes: Sequence[Any]) -> None:
    """Add a legend of all labeled lines below the panels, and the height that it needs; no legend for a single line."""
    lines = {label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if len(lines) < 2:
        return
    width, height = figure.get_size_inches()
    longest = max(map(len, lines))
    num_columns = max(1, min(len(lines), int(width / (0.085 * longest + 0.6))))  # inches of a character and a marker
    figure.set_size_inches(width, height + 0.2 * -(-len(lines) // num_columns) + 0.2)
    labels = [textwrap.fill(label, int(width / 0.085)) for label in lines]
    figure.legend(list(lines.values()), labels, loc="outside lower center", ncols=num_columns, fontsize="small")


def _first(panels: dict[str, Panel]) -> dict[str, Panel]:
    """Return the first MAX_PANELS panels."""
    return dict(itertools.islice(panels.items(), MAX_PANELS))


def _grid_of_panels(count: int) -> tuple[Any, list[Any]]:
    """Return a figure and its `count` panels, at most three per row."""
    num_columns = min(3, count)
    num_rows = -(-count // num_columns)
    figure, axes = pyplot.subplots(
        num_rows, num_columns, figsize=(5.2 * num_columns, 3.8 * num_rows), layout="constrained", squeeze=False
    )
    for panel in axes.flat[count:]:
        panel.set_visible(False)
    return figure, list(axes.flat[:count])


def _positions(settings: list[str]) -> dict[str, float]:
    if _are_numeric(settings):
        return {setting: float(setting) for setting in settings}
    return {setting: float(index) for index, setting in enumerate(settings)}


def _are_numeric(settings: list[str]) -> bool:
    return all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", setting) for setting in settings)


def save_schedules(
    curves: dict[str, dict[str, np.ndarray]], times: dict[str, list[float]], images: dict[str, Tensor], path: Path
) -> None:
    """Plot noise schedules to a PNG file: their curves of alpha, sigma and log-SNR, and noisy images for each schedule.

    curves: schedule name -> dict with the arrays "t / t_max", "alpha", "sigma" and "log-SNR", each [num_points].
    times: schedule name -> increasing times of the noisy images.
    images: schedule name -> noisy images, [num_times, C, H, W] in [-1, 1].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = pyplot.figure(figsize=(12, 3.6 + 1.3 * len(curves)), layout="constrained")
    rows = figure.add_gridspec(1 + len(curves), 3, height_ratios=[3.4, *[1.3] * len(curves)])
    panels = {title: figure.add_subplot(rows[0, k]) for k, title in enumerate(("alpha", "sigma", "log-SNR"))}
    for title, axes in panels.items():
        axes.set(title=title, xlabel="t / t_max", yscale="log" if title == "sigma" else "linear")
        axes.grid(alpha=0.3)
    panels["log-SNR"].set_ylim(-20, 20)
    for number, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"label": plot_text(name), "linestyle": ("-", "--", ":", "-.")[number % 4]}
        for title, axes in panels.items():
            axes.plot(curve["t / t_max"], curve[title], **style)
        _show_strip(figure.add_subplot(rows[1 + number, :]), name, times[name], images[name])
    figure.legend(*panels["alpha"].get_legend_handles_labels(), loc="outside upper center", ncols=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _show_strip(axes: Any, name: str, times: list[float], images: Tensor) -> None:
    """Show noisy images [num_times, C, H, W] in one row, labeled with their times."""
    strip = grid(images, num_columns=len(times))
    axes.imshow(strip)
    width = strip.shape[1] / len(times)
    axes.set_xticks([(k + 0.5) * width for k in range(len(times))], [f"{t:.3g}" for t in times])
    axes.set_yticks([])
    axes.set_ylabel(plot_text(name), rotation=0, ha="right", va="center")

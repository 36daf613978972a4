"""Curves -> picture files and the tables behind them."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from diffusion_lab.process import GaussianProcess, NoiseSchedule
from diffusion_lab.reporting.image_grids import grid

matplotlib.use("Agg")  # files alone: no display is asked for

from matplotlib import pyplot


def save_bound(terms: Sequence[float], steps: Sequence[float], path: Path) -> None:
    """The bound term by term, as CSV and, beside it, as PNG (as figure 2 of Nichol & Dhariwal 2021).

    terms: L_0, ..., L_{T-1}, L_T, bits per dimension.  steps: the T times.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["term", "t", "bits_per_dimension"])
        writer.writerows(
            [f"L_{k}", t, term] for k, (t, term) in enumerate(zip([*steps, steps[-1]], terms, strict=True))
        )
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, terms[:-1])
    axes.set(xlabel="t", ylabel="bits/dim", yscale="log", title=f"the bound by step: {sum(terms):.3f} bits/dim in all")
    axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    pyplot.close(figure)


def save_lines(panels: dict[str, dict[str, list[tuple[float, float]]]], xlabel: str, path: Path) -> None:
    """Lines of points (x, y), one panel for each number, as PNG; x in powers of ten, y too where it spans one.

    panels: by the number's name, the points of each line by its name, growing in x.
    """
    figure, axes = _grid_of_panels(len(panels))
    for panel, (name, lines) in zip(axes, panels.items(), strict=True):
        for label, points in lines.items():
            panel.plot(*zip(*points, strict=True), marker="o", label=label)
        values = [y for points in lines.values() for _, y in points]
        wide = min(values) > 0 and max(values) > max(1, 10 * min(values))  # shares stay as they are
        panel.set(title=name, xlabel=xlabel, xscale="log", yscale="log" if wide else "linear")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        panel.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        if any(lines):
            panel.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def save_against(panels: dict[str, list[tuple[str, float]]], xlabel: str, path: Path) -> None:
    """Points (setting, number), one panel for each number, as PNG; the line goes through the means.

    Settings that are numbers stand at their places, in powers of ten where they span some; others side by side.
    """
    figure, axes = _grid_of_panels(len(panels))
    for panel, (name, points) in zip(axes, panels.items(), strict=True):
        settings = list(dict.fromkeys(setting for setting, _ in points))
        places = _places(settings)
        means = {s: float(np.mean([y for setting, y in points if setting == s])) for s in settings}
        line = sorted((places[s], means[s]) for s in settings)
        panel.plot(*zip(*line, strict=True), color="C0", alpha=0.6, linestyle="-" if _numbers(settings) else ":")
        panel.scatter([places[setting] for setting, _ in points], [y for _, y in points], color="C0", zorder=3)
        wide = _numbers(settings) and min(places.values()) > 0 and max(places.values()) > 20 * min(places.values())
        panel.set(title=name, xlabel=xlabel, xscale="log" if wide else "linear")
        panel.set_xticks(list(places.values()), settings, minor=False)
        if sum(map(len, settings)) > 50:
            panel.tick_params("x", rotation=20)
        panel.minorticks_off()
        panel.margins(x=0.15)
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _grid_of_panels(count: int) -> tuple[Any, list[Any]]:
    """A figure of so many panels, three a row at most."""
    num_columns = min(3, count)
    num_rows = -(-count // num_columns)
    figure, axes = pyplot.subplots(
        num_rows, num_columns, figsize=(5.2 * num_columns, 3.8 * num_rows), layout="constrained", squeeze=False
    )
    for panel in axes.flat[count:]:
        panel.set_visible(False)
    return figure, list(axes.flat[:count])


def _places(settings: list[str]) -> dict[str, float]:
    if _numbers(settings):
        return {setting: float(setting) for setting in settings}
    return {setting: float(place) for place, setting in enumerate(settings)}


def _numbers(settings: list[str]) -> bool:
    return all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", setting) for setting in settings)


def save_schedules(schedules: dict[str, NoiseSchedule], times: dict[str, Tensor], image: Tensor, path: Path) -> None:
    """alpha, sigma and log-SNR of schedules over their range, and one image noised along each, as PNG.

    times: of the noised images, growing, [n] for each name.  image: [C, H, W] in [-1, 1].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = pyplot.figure(figsize=(12, 3.6 + 1.3 * len(schedules)), layout="constrained")
    rows = figure.add_gridspec(1 + len(schedules), 3, height_ratios=[3.4, *[1.3] * len(schedules)])
    panels = [figure.add_subplot(rows[0, k]) for k in range(3)]
    for axes, title, scale in zip(panels, ("alpha", "sigma", "log-SNR"), ("linear", "log", "linear"), strict=True):
        axes.set(title=title, xlabel="t / t_max", yscale=scale)
        axes.grid(alpha=0.3)
    panels[2].set_ylim(-20, 20)
    for number, (name, schedule) in enumerate(schedules.items()):
        t = schedule.nearest(torch.linspace(schedule.t_min, schedule.t_max, 1000, dtype=torch.float64))
        for panel, value in zip(panels, (*schedule.coefficients(t), schedule.log_snr(t)), strict=True):
            panel.plot(t / schedule.t_max, value, label=name, linestyle=("-", "--", ":", "-.")[number % 4])
        axes = figure.add_subplot(rows[1 + number, :])
        strip = _noised(schedule, times[name], image)
        axes.imshow(strip)
        width = strip.shape[1] / len(times[name])
        axes.set_xticks(
            [(k + 0.5) * width for k in range(len(times[name]))], [f"{t:.3g}" for t in times[name].tolist()]
        )
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _noised(schedule: NoiseSchedule, t: Tensor, image: Tensor) -> np.ndarray:
    """One row of x_t at the times t, each over sqrt(alpha^2 + sigma^2), so that all can be looked at."""
    x_0 = image.expand(len(t), *image.shape)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).expand_as(x_0)
    process = GaussianProcess(schedule)
    alpha_t, sigma_t = process.coefficients(t, like=x_0)
    return grid(process.q_sample(x_0, t, noise) / torch.hypot(alpha_t, sigma_t), num_columns=len(t))

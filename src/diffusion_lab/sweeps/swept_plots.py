"""Plots of the metrics of a sweep against its swept settings."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.runs.tables import table as run_table
from diffusion_lab.runs.tables.averages import SEEDS, TRAINING_STEP, by_settings, different_protocols, finite, value_of
from diffusion_lab.runs.tables.plots import title
from diffusion_lab.runs.tables.sweep_order import in_typed_order
from diffusion_lab.runs.tables.table import Row


def plot_swept(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> None:
    """Plot every metric against every swept setting except the seed.

    Each combination of the other swept settings has its own line, with the mean and the standard deviation over seeds.
    """
    ordered = in_typed_order(rows, swept, folder)
    for key in swept:
        if key in (*SEEDS, "sampler.num_steps", TRAINING_STEP):
            continue  # plot_steps plots the numbers of steps
        others = [other for other in swept if other != key]
        panels = {}
        for name in run_table.number_names(rows):
            lines = {
                _label(settings): _points(group, key, name)
                for settings, group in by_settings([row for row in ordered if finite([row], name)], others)
            }
            if "_std_" not in name and len({x for points in lines.values() for x, _, _ in points}) > 1:
                panels[title(rows, name)] = lines
        if panels:
            from diffusion_lab.reporting import plots

            order = list(dict.fromkeys(value_of(row, key) for row in ordered))
            plots.save_against(panels, key, order, folder / f"against_{key.replace('/', '.')}.png")


def _label(settings: dict[str, str]) -> str:
    return " ".join(value if key == "run" else f"{key}={value}" for key, value in settings.items())


def _points(rows: Sequence[Row], key: str, name: str) -> list[tuple[str, float, float]]:
    """Return a point for each value of the setting `key`: value, mean and standard deviation of the metric `name`.

    Values that were computed in different ways have no point, because they cannot be averaged.
    """
    groups = [group for _, group in by_settings(rows, [key]) if not different_protocols(group, name)]
    values = [(value_of(group[0], key), finite(group, name)) for group in groups]
    return [(x, statistics.fmean(y), statistics.stdev(y) if len(y) > 1 else 0.0) for x, y in values]

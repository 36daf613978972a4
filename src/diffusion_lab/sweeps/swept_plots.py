"""Plots of the metrics of a sweep against its swept settings."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from diffusion_lab.runs import tables as run_tables
from diffusion_lab.runs.tables import Row
from diffusion_lab.sweeps.averages import SEED, by_settings, finite, value_of


def plot_swept(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> None:
    """Plot every metric against every swept setting except the seed.

    Each combination of the other swept settings has its own line, with the mean and the standard deviation over seeds.
    """
    ordered = in_typed_order(rows, swept, folder)
    for key in swept:
        if key in (SEED, "sampler.num_steps"):
            continue  # run_tables.plot_steps plots the number of steps
        others = [other for other in swept if other != key]
        panels = {}
        for name in run_tables.number_names(rows):
            lines = {
                _label(settings): _points(group, key, name)
                for settings, group in by_settings([row for row in ordered if finite([row], name)], others)
            }
            if "_std_" not in name and len({x for points in lines.values() for x, _, _ in points}) > 1:
                panels[run_tables.title(rows, name)] = lines
        if panels:
            from diffusion_lab.reporting import plots

            order = list(dict.fromkeys(value_of(row, key) for row in ordered))
            plots.save_against(panels, key, order, folder / f"against_{key.replace('/', '.')}.png")


def in_typed_order(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> list[Row]:
    """Return the rows in the order of the values in the command that last started the sweep, if it is known."""
    path = folder / "multirun.yaml"  # written by Hydra; a search has no such file
    typed = OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task") if path.is_file() else None
    orders = {
        override.key_or_group: [str(value).strip("'\"") for value in override.sweep_string_iterator()]
        for override in OverridesParser.create().parse_overrides(list(typed or ()))
        if override.is_discrete_sweep()
    }

    def position(row: Row) -> list[int]:
        values = [(orders.get(key, []), row.overrides.get(key, "").strip("'\"")) for key in swept]
        return [order.index(value) if value in order else len(order) for order, value in values]

    return sorted(rows, key=position)


def _label(settings: dict[str, str]) -> str:
    return " ".join(value if key == "run" else f"{key}={value}" for key, value in settings.items())


def _points(rows: Sequence[Row], key: str, name: str) -> list[tuple[str, float, float]]:
    """Return a point for each value of the setting `key`: value, mean and standard deviation of the metric `name`."""
    values = [(value_of(group[0], key), finite(group, name)) for _, group in by_settings(rows, [key])]
    return [(x, statistics.fmean(y), statistics.stdev(y) if len(y) > 1 else 0.0) for x, y in values]

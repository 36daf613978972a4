"""The order of the runs of a sweep in tables and plots."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from diffusion_lab.config.saved_files import read_saved, reading
from diffusion_lab.runs.tables.table import Row


def in_typed_order(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> list[Row]:
    """Return the rows in the order of the values in the command that last started the sweep, if it is known.

    Evaluations with equal values have the order of their runs in the command of the sweep that trained these runs.
    """
    orders = _typed_orders(folder)
    trained_in = {row.run.parent for row in rows if row.run != row.folder}
    for key, order in _typed_orders(trained_in.pop()).items() if len(trained_in) == 1 else ():
        orders.setdefault(key, order)
        orders[f"trained.{key}"] = order
    keys = [key for key in orders if key in swept]

    def position(row: Row) -> list[int]:
        values = [(orders[key], _normal(row.overrides.get(key, ""))) for key in keys]
        return [order.index(value) if value in order else len(order) for order, value in values]

    return sorted(rows, key=position)


def _typed_orders(folder: Path) -> dict[str, list[str]]:
    """Return the values of each swept setting as they were typed; nothing if the folder is not that of a sweep."""
    path = folder / "multirun.yaml"  # written by Hydra; a search has no such file
    content = read_saved(path, dict, interpolations=True) if path.is_file() else {}
    with reading(path):
        typed = content["hydra"]["overrides"]["task"] if content else []
        return {
            override.key_or_group: [_normal(str(value)) for value in override.sweep_string_iterator()]
            for override in OverridesParser.create().parse_overrides(list(map(str, typed)))
            if override.is_discrete_sweep()
        }


def _normal(value: str) -> str:
    """Return a value in the form in which equal numbers, such as 1e-4 and 0.0001, are equal texts."""
    text = value.strip("'\"")
    with contextlib.suppress(ValueError):
        return str(float(text))
    return text

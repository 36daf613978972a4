"""The order of the runs of a sweep in tables and plots."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from diffusion_lab.config.saved_files import read_saved, reading
from diffusion_lab.runs.tables.table import Row


def in_typed_order(rows: Sequence[Row], swept: Sequence[str], folder: Path) -> list[Row]:
    """Return the rows in the order of the values in the command that last started the sweep, if it is known."""
    path = folder / "multirun.yaml"  # written by Hydra; a search has no such file
    content = read_saved(path, dict, interpolations=True) if path.is_file() else {}
    with reading(path):
        typed = content["hydra"]["overrides"]["task"] if content else []
        orders = {
            override.key_or_group: [str(value).strip("'\"") for value in override.sweep_string_iterator()]
            for override in OverridesParser.create().parse_overrides(list(map(str, typed)))
            if override.is_discrete_sweep()
        }

    def position(row: Row) -> list[int]:
        values = [(orders.get(key, []), row.overrides.get(key, "").strip("'\"")) for key in swept]
        return [order.index(value) if value in order else len(order) for order, value in values]

    return sorted(rows, key=position)

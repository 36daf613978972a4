"""The metrics that a training run logged in its metrics.csv, and a plot of them."""

import math
from pathlib import Path

from diffusion_lab.config.earlier_versions import current_metric
from diffusion_lab.config.saved_files import reading
from diffusion_lab.reporting.csv_files import read_csv
from diffusion_lab.runs.results import earlier_ends

METRICS_LOG, CURVES = "metrics.csv", "curves.png"

LOGGED = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "images_per_second", "data_wait",
          "after_training")  # fmt: skip
"""Columns of metrics.csv that are not measured metrics, in addition to the columns that start with measuring_."""


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the lines of metrics.csv without empty cells; no lines if there is no file."""
    path = folder / METRICS_LOG
    if not path.is_file():
        return []
    with reading(path):
        lines = [{current_metric(name): text for name, text in line.items()} for line in read_csv(path)]
    return [{name: float(text) for name, text in line.items() if _is_number(text)} for line in lines]


def save_curves(folder: Path) -> None:
    """Plot the loss and each measured metric against the training step in curves.png; no plot if none was logged.

    The plot includes the loss and the metrics at the end of a run that was later trained further.
    """
    curves: dict[str, dict[float, float]] = {"loss": {}}
    for line in read_log(folder):
        for name, value in line.items():
            is_curve = name == "loss" or not (name in LOGGED or name.startswith("measuring_") or "_std_" in name)
            if is_curve and "step" in line and math.isfinite(value):
                curves.setdefault(name, {})[line["step"]] = value
    for end in earlier_ends(folder):
        for name in curves.keys() & end.keys():
            if end[name] is not None:
                curves[name].setdefault(end["steps"], end[name])
    titles = {"loss": "loss of single steps"}
    panels = {titles.get(name, name): sorted(curve.items()) for name, curve in curves.items() if curve}
    if panels:
        from diffusion_lab.reporting import plots

        plots.save_curves(panels, folder / CURVES)


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True

"""Plot the figure of docs/fine_tuning.md from the table of `src/compare.py`.

python benchmarks/fine_tuning.py logs/compare/RUN/numbers.csv docs/fine_tuning.png
"""

import sys
from collections import defaultdict
from pathlib import Path

from diffusion_lab.reporting.csv_files import read_csv

METRIC = "fd_fashion_cnn_500_train"

LABELS = {"scratch": "random initial weights", "tuned": "init: weights of the other classes"}
"""Name of a run folder -> label of its curve."""


def main(table: Path, output: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = defaultdict(list)
    for row in read_csv(table):
        points[row["trained"]].append((int(row["training_step"]), float(row[METRIC])))
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for run, label in LABELS.items():
        axes.plot(*zip(*sorted(points[run]), strict=True), marker="o", label=label)
    (end,) = (value for step, value in points["scratch"] if step == 600)
    axes.axhline(end, color="gray", linestyle=":", label="end of the run with random initial weights")
    axes.set(xlabel="training step", ylabel="Fréchet distance (lower is better)", ylim=(0, None))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

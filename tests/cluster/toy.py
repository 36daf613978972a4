"""A command that only returns a number, to measure the overhead of a sweep."""

import time
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lab.commands import entry
from diffusion_lab.runs import results as run_results


def toy(config: DictConfig) -> float:
    """Return the square of the seed, divided by ten."""
    time.sleep(0.5)
    run_results.write_summary(Path(config.run_folder), {"loss": config.seed**2 / 10})
    return float(config.seed**2 / 10)


if __name__ == "__main__":
    entry.entry("train", toy, keeps_status=True)

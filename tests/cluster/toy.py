"""A command that does nothing but come to a number: all that a sweep of it takes is overhead."""

import time
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lab.commands import entry
from diffusion_lab.runs import results as run_results


def toy(config: DictConfig) -> float:
    """The square of the seed, over ten."""
    time.sleep(0.5)
    run_results.write_summary(Path(config.run_folder), {"loss": config.seed**2 / 10})
    return float(config.seed**2 / 10)


if __name__ == "__main__":
    entry.entry("train", toy, keeps_status=True)

"""Trains one diffusion model, or a sweep of them.

python src/train.py experiment=quickstart
python src/train.py schedule=cosine data=cifar10
python src/train.py -m schedule=linear,cosine model=unet_tiny,unet_small
"""

import time

from omegaconf import DictConfig

from diffusion_lab import config_entry, run_tables, runs
from diffusion_lab.config_check import UserError


def train(config: DictConfig) -> float | None:
    """Compose -> build -> fit -> the number to minimise: the last distance, or loss where none was measured."""
    run = runs.build(config)

    from diffusion_lab import step_guard, summary  # torch and Lightning: by now they are loaded

    started = time.monotonic()
    summary.announce(run.module, run.datamodule, run.trainer, run.folder)
    try:
        run.trainer.fit(run.module, datamodule=run.datamodule)
    except step_guard.DivergedError as error:
        raise UserError(str(error)) from error
    result = summary.summarize(run.trainer, minutes=(time.monotonic() - started) / 60)
    if run.trainer.is_global_zero:
        run_tables.write_summary(run.folder, result.as_dict())
        if not config_entry.swept():
            summary.show(result, run.folder)
    return result.objective


if __name__ == "__main__":
    config_entry.entry("train", train)

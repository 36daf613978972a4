"""Draws noise schedules: alpha, sigma and log-SNR, and one image noised along each.

python src/show_schedule.py schedule=linear,cosine,edm
python src/show_schedule.py schedule=linear schedule.num_timesteps=50 'beside=[linear,linear_scaled]'
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_lab.commands import entry
from diffusion_lab.config import compose
from diffusion_lab.config.validation import argument_problems, raise_problems
from diffusion_lab.errors import UserError
from diffusion_lab.runs import load as run_loading

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.process import NoiseSchedule


def show_schedule(config: DictConfig) -> None:
    """Config -> schedules -> one picture."""
    named = {HydraConfig.get().runtime.choices["schedule"]: config}
    for name in config.beside:
        # A schedule that is shown twice, once with other settings, keeps both curves.
        named[name if name not in named else f"{name} "] = compose.compose_config("show_schedule", [f"schedule={name}"])
    schedules, times = {}, {}
    for name, own in named.items():
        schedules[name], times[name] = _schedule_and_times(own, config.num_times)
    image = _image(config)

    from diffusion_lab.reporting import plots

    path = Path(config.output_folder) / "schedules.png"
    plots.save_schedules(schedules, times, image, path)
    for name, schedule in schedules.items():
        print(f"{name:16} {schedule}; alpha / sigma at the end: {schedule.remaining_signal:.3g}")
    print(f"the picture is {path}", flush=True)


def _schedule_and_times(config: DictConfig, num_times: int) -> tuple["NoiseSchedule", "Tensor"]:
    """A config's schedule, and num_times of its times, growing, by the time grid that suits it.  Raises UserError."""
    import torch

    node = run_loading.resolve(OmegaConf.create({"schedule": config.schedule, "time_grid": config.time_grid}))
    raise_problems(list(argument_problems(node, "")))
    schedule, time_grid = (
        run_loading.instantiate_node(node.schedule, "schedule"),
        run_loading.instantiate_node(node.time_grid, "time_grid"),
    )
    try:
        times = time_grid(schedule, min(num_times, getattr(schedule, "num_timesteps", num_times)))
    except ValueError as error:
        raise UserError(f"num_times: {error}") from error
    return schedule, torch.tensor(times[::-1], dtype=torch.float64)


def _image(config: DictConfig) -> "Tensor":
    """The training image that a config names, [C, H, W] in [-1, 1].  Raises UserError."""
    store = run_loading.instantiate_node(run_loading.resolve(config).data.store, "data")
    try:
        images = store.load("train")
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    import torch

    if not 0 <= config.image < len(images):
        raise UserError(f"image must be in 0..{len(images) - 1}, got {config.image}.")
    image: Tensor = images.gather(torch.tensor([config.image]))[0].float() / 127.5 - 1
    return image


def _first_and_beside(words: list[str]) -> list[str]:
    """schedule=a,b,c would be a sweep of three runs; here it is one picture of three curves."""
    for k, word in enumerate(words):
        if found := re.fullmatch(r"schedule=(\w+),([\w,]+)", word):
            return [*words[:k], f"schedule={found[1]}", f"beside=[{found[2]}]", *words[k + 1 :]]
    return words


def main() -> None:
    sys.argv[1:] = _first_and_beside(sys.argv[1:])
    entry.entry("show_schedule", show_schedule)

"""Plot noise schedules: curves of alpha, sigma and log-SNR, and an image at increasing noise levels.

python src/show_schedule.py schedule=linear,cosine,edm
python src/show_schedule.py schedule=cosine schedule.num_timesteps=50
python src/show_schedule.py schedule=linear schedule.num_timesteps=50 'beside=[linear,linear_scaled]'

Results: logs/show_schedule/<date>_<time>/schedules.png.
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
    import numpy as np
    from torch import Tensor

    from diffusion_lab.process import NoiseSchedule


def show_schedule(config: DictConfig) -> None:
    """Plot the configured schedule and the schedules that `beside` names in one figure."""
    if type(config.num_times) is not int or config.num_times < 1:
        raise UserError(f"num_times must be a whole number of at least 1, got {config.num_times}.")
    configs = {HydraConfig.get().runtime.choices["schedule"]: config}
    for name in config.beside or ():
        # The trailing space keeps both curves if a schedule is shown with other settings and with its default settings.
        key = f"{name} " if name in configs else name
        try:
            configs[key] = compose.compose_config("show_schedule", [f"schedule={name}"])
        except UserError as error:
            raise UserError(str(error).replace("schedule must be one of", "beside must contain only", 1)) from error
    schedules, times = {}, {}
    for name, own in configs.items():
        schedules[name], times[name] = _schedule_and_times(own, config.num_times)
    image = _image(config)

    from diffusion_lab.reporting import plots

    path = Path(config.output_folder) / "schedules.png"
    plots.save_schedules(
        {name: _curves(schedule) for name, schedule in schedules.items()},
        {name: t.tolist() for name, t in times.items()},
        {name: _noisy_images(schedule, times[name], image) for name, schedule in schedules.items()},
        path,
    )
    for name, schedule in schedules.items():
        print(f"{name:16} {schedule}; alpha / sigma at t_max: {schedule.remaining_signal:.3g}")
    print(f"the figure is in {path}", flush=True)


def _schedule_and_times(config: DictConfig, num_times: int) -> tuple["NoiseSchedule", "Tensor"]:
    """Return the configured schedule, and at most num_times of its times, in increasing order, float64.

    Raises UserError if the schedule or the time grid has invalid settings.
    """
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
        raise UserError(f"time_grid with num_times={num_times}: {error}") from error
    return schedule, torch.tensor(times[::-1], dtype=torch.float64)


def _image(config: DictConfig) -> "Tensor":
    """Return the configured training image, [C, H, W] in [-1, 1].  Raises UserError if it cannot be loaded."""
    store = run_loading.instantiate_node(run_loading.resolve(config).data.store, "data")
    try:
        images = store.load("train")
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    import torch

    from diffusion_lab.pixels import from_uint8

    if type(config.image) is not int or not 0 <= config.image < len(images):
        raise UserError(f"`image` must be in 0..{len(images) - 1}, got {config.image}.")
    return from_uint8(images.gather(torch.tensor([config.image]))[0])


def _curves(schedule: "NoiseSchedule") -> dict[str, "np.ndarray"]:
    """Return t / t_max, alpha, sigma and log-SNR of a schedule at 1000 times from t_min to t_max, by name."""
    import torch

    t = schedule.nearest(torch.linspace(schedule.t_min, schedule.t_max, 1000, dtype=torch.float64))
    alpha_t, sigma_t = schedule.coefficients(t)
    curves = {"t / t_max": t / schedule.t_max, "alpha": alpha_t, "sigma": sigma_t, "log-SNR": schedule.log_snr(t)}
    return {name: curve.numpy() for name, curve in curves.items()}


def _noisy_images(schedule: "NoiseSchedule", t: "Tensor", image: "Tensor") -> "Tensor":
    """Return noisy versions of one image [C, H, W], one for each time in t [num_times]: [num_times, C, H, W].

    Each noisy image is x_t / sqrt(alpha^2 + sigma^2). The division keeps the pixel values displayable for schedules
    with alpha = 1, in which x_t grows with sigma.
    """
    import torch

    from diffusion_lab.process import GaussianProcess

    x_0 = image.expand(len(t), *image.shape)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).expand_as(x_0)
    process = GaussianProcess(schedule)
    alpha_t, sigma_t = process.coefficients(t, like=x_0)
    return process.q_sample(x_0, t, noise) / torch.hypot(alpha_t, sigma_t)


def split_schedules(overrides: list[str]) -> list[str]:
    """Replace schedule=a,b,c, which Hydra would run as a sweep, with schedule=a and beside=[b,c].

    schedule=[a,b,c] means the same, and beside=b,c means beside=[b,c].
    """
    result = list[str]()
    for override in overrides:
        if found := re.fullmatch(r"schedule=\[?(\w+),([\w,]+)\]?", override):
            result += [f"schedule={found[1]}", f"beside=[{found[2]}]"]
        else:
            result.append(re.sub(r"^beside=(?!null$)(\w[\w,]*)$", r"beside=[\1]", override))
    return result


def main() -> None:
    sys.argv[1:] = split_schedules(sys.argv[1:])
    entry.entry("show_schedule", show_schedule)


if __name__ == "__main__":
    main()

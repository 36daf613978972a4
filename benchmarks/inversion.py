"""Measure the error of inversion against the number of steps; print a table and draw docs/inversion.png.

    python src/train.py experiment=quickstart hydra.run.dir=logs/train/plain
    PYTHONPATH=tests python benchmarks/inversion.py logs/train/plain

A sampler encodes images as noise and generates them again from this noise. The first two panels use data from a mixture
of Gaussians, for which the denoiser and the probability flow are known exactly. Their errors are the difference of the
noise from the exact noise, and the difference of the generated images from the given images. The third panel shows the
latter for 16 held-out images and the network of a run of the quick start, without guidance.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch import Tensor

from diffusion_lab import load_module
from diffusion_lab.denoiser import DenoiserLike
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8
from diffusion_lab.process import EDMSchedule, GaussianProcess
from diffusion_lab.runs.load import instantiate_node, load_config
from diffusion_lab.samplers import DDIM, GivenNoise, Heun, InvertibleSampler, KarrasTimes, NoClipping
from support.oracles import MixtureOracle

SAMPLERS: dict[str, Callable[..., InvertibleSampler]] = {"ddim": DDIM, "heun": Heun}
EXACT_STEPS = (32, 64, 128, 256, 512)
NETWORK_STEPS = (5, 10, 20, 50, 100)
NUM_IMAGES = 16


def rmse(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().mean().sqrt())


def round_trip(sampler: InvertibleSampler, denoiser: DenoiserLike, images: Tensor, condition: Condition) -> Tensor:
    """Return the images that the sampler generates from the noise to which it encodes images [B, C, H, W]."""
    return sampler.sample(denoiser, GivenNoise(sampler.encode(denoiser, images, condition)), condition)


def exact_errors(build: Callable[..., InvertibleSampler]) -> tuple[list[float], list[float]]:
    """Return the errors of the noise, and of the generated images, for each step count of the exact denoiser."""
    process = GaussianProcess(EDMSchedule())
    denoiser, t_max = MixtureOracle(process), process.schedule.t_max
    noise = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = denoiser.flow(noise * process.schedule.prior_std(torch.tensor(t_max)), t_max, 0.0)
    of_noise, of_images = [], []
    for num_steps in EXACT_STEPS:
        sampler = build(process, num_steps=num_steps, time_grid=KarrasTimes(), clipping=NoClipping())
        of_noise.append(rmse(sampler.encode(denoiser, images), noise))
        of_images.append(rmse(round_trip(sampler, denoiser, images, Condition()), images))
    return of_noise, of_images


def network_errors(run: str, build: Callable[..., InvertibleSampler]) -> list[float]:
    """Return the errors of the generated images in gray levels, for each step count of the network of a run."""
    module, config = load_module(run), load_config(Path(run))
    held_out = instantiate_node(config.data.store, "data").load("held_out")
    images, label = from_uint8(held_out.gather(torch.arange(NUM_IMAGES))), held_out.label[:NUM_IMAGES]
    denoiser = module.denoiser()
    samplers = [build(module.process, num_steps=num_steps, clipping=NoClipping()) for num_steps in NETWORK_STEPS]
    return [127.5 * rmse(round_trip(each, denoiser, images, Condition(label)), images) for each in samplers]


def draw(axes: Axes, name: str, steps: tuple[int, ...], errors: list[float]) -> None:
    """Draw and print the errors of one sampler for several step counts."""
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    axes.loglog(steps, errors, "-o", markersize=3, label=f"{name}: {slope:.2f}")
    axes.set_xticks(steps, [str(num_steps) for num_steps in steps])
    axes.minorticks_off()
    print(f"{axes.get_title():32} {name:5} slope {slope:.2f}  errors {' '.join(f'{error:.1e}' for error in errors)}")


def main() -> None:
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    units = "root mean square error", "root mean square error", "root mean square error, gray levels"
    titles = "exact denoiser, noise", "exact denoiser, round trip", "quick start, round trip"
    for axes, title, unit in zip(panels, titles, units, strict=True):
        axes.set(title=title, xlabel="steps", ylabel=unit)
        axes.grid(alpha=0.3)
    for name, build in SAMPLERS.items():
        for axes, errors in zip(panels, exact_errors(build), strict=False):
            draw(axes, name, EXACT_STEPS, errors)
        draw(panels[2], name, NETWORK_STEPS, network_errors(sys.argv[1], build))
    for axes in panels:
        axes.legend(title="fitted order")
    figure.savefig(Path(__file__).parents[1] / "docs" / "inversion.png", dpi=90)


if __name__ == "__main__":
    main()

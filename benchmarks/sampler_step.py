"""The time of a sampler step without the network, compared with diffusers' schedulers.

    python benchmarks/sampler_step.py

Each loop runs 50 steps with a network that returns a constant, so that all time is spent in the sampler. Ours uses one
random stream per image, as evaluations do; diffusers uses one for the batch.
"""

import argparse
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from measuring import Row, interleave, main, timed
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Condition
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, LeadingTimes

SHAPES = ((16, 3, 32, 32), (1, 3, 32, 32), (128, 1, 28, 28))
NUM_STEPS = 50


class ConstantNetwork(nn.Module):
    """Returns the same noise for every input."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output = torch.randn(shape)

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.output


def our_loop(sampler: Ancestral | DDIM, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    denoiser = Denoiser(ConstantNetwork(shape), sampler.process, Epsilon())
    return lambda: sampler.sample(denoiser, ImageNoise(range(shape[0]), shape[1:]), Condition())


def their_loop(scheduler: DDPMScheduler | DDIMScheduler, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    network = ConstantNetwork(shape)

    @torch.no_grad()
    def sample() -> Tensor:
        x_t = torch.randn(shape)
        scheduler.set_timesteps(NUM_STEPS)
        for t in scheduler.timesteps:
            x_t = scheduler.step(network(x_t, t, Condition()), t, x_t).prev_sample
        return x_t

    return sample


def rows(arguments: argparse.Namespace) -> list[Row]:
    process, found = GaussianProcess(LinearSchedule()), []
    for shape in SHAPES:
        loops = {
            "ddim": our_loop(DDIM(process, NUM_STEPS, time_grid=LeadingTimes()), shape),
            "DDIMScheduler": their_loop(DDIMScheduler(clip_sample=True), shape),
            "ancestral": our_loop(Ancestral(process, NUM_STEPS, LeadingTimes()), shape),
            "DDPMScheduler": their_loop(DDPMScheduler(clip_sample=True), shape),
        }
        jobs = {name: lambda loop=loop: 1e6 * timed(loop) / NUM_STEPS for name, loop in loops.items()}
        taken = interleave(jobs, 5 * arguments.rounds)
        for mine, other in (("ddim", "DDIMScheduler"), ("ancestral", "DDPMScheduler")):
            what = f"{mine} step without the network, {' x '.join(map(str, shape))}"
            asked = 1 / 0.7 if shape[0] == 16 else 1.0
            found.append(Row(what, "us", taken[mine], taken[other], f"diffusers' {other}", round(asked, 2)))
    return found


if __name__ == "__main__":
    main(__doc__, rows)

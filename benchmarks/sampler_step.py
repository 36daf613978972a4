"""What a sampler's step costs outside the network, beside diffusers' schedulers.

    python benchmarks/sampler_step.py

Each loop runs 50 steps on a network that answers at once, so that all its time is the sampler's own. Ours draws from
one random stream an image, as evaluations do; diffusers draws from one for the batch.
"""

import argparse
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from measuring import Row, in_turns, main, timed
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Condition
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, LeadingTimes

SHAPES = ((16, 3, 32, 32), (1, 3, 32, 32), (128, 1, 28, 28))
NUM_STEPS = 50


class Instant(nn.Module):
    """Answers the same noise to everything."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.answer = torch.randn(shape)

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.answer


def ours(sampler: Ancestral | DDIM, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    denoiser = Denoiser(Instant(shape), sampler.process, Epsilon())
    return lambda: sampler.sample(denoiser, ImageNoise(range(shape[0]), shape[1:]), Condition())


def theirs(scheduler: DDPMScheduler | DDIMScheduler, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    network = Instant(shape)

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
            "ddim": ours(DDIM(process, NUM_STEPS, time_grid=LeadingTimes()), shape),
            "DDIMScheduler": theirs(DDIMScheduler(clip_sample=True), shape),
            "ancestral": ours(Ancestral(process, NUM_STEPS, LeadingTimes()), shape),
            "DDPMScheduler": theirs(DDPMScheduler(clip_sample=True), shape),
        }
        jobs = {name: lambda loop=loop: 1e6 * timed(loop) / NUM_STEPS for name, loop in loops.items()}
        taken = in_turns(jobs, 5 * arguments.rounds)
        for mine, other in (("ddim", "DDIMScheduler"), ("ancestral", "DDPMScheduler")):
            what = f"a step of {mine} outside the network, {' x '.join(map(str, shape))}"
            asked = 1 / 0.7 if shape[0] == 16 else 1.0
            found.append(Row(what, "us", taken[mine], taken[other], f"diffusers' {other}", round(asked, 2)))
    return found


if __name__ == "__main__":
    main(__doc__, rows)

"""What a sampler's step costs outside the network, beside diffusers' schedulers: python benchmarks/sampler_step.py

Needs the extra "bench". Each loop runs on a network that answers at once, so that all its time is the sampler's own;
unet_cifar10 at batch 16 is timed beside it. Ours draws from one random stream an image, as evaluation does; diffusers
draws from one for the batch.
"""

import statistics
import time
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Condition, UNet
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, Ancestral, LeadingTimes

SHAPE = (16, 3, 32, 32)
NUM_STEPS = 50
ROUNDS = 15


class Instant(nn.Module):
    """Answers the same noise to everything."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = torch.randn(SHAPE)

    def forward(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.answer


def ours(sampler: Ancestral | DDIM) -> Callable[[], Tensor]:
    denoiser = Denoiser(Instant(), sampler.process, Epsilon())
    return lambda: sampler.sample(denoiser, ImageNoise(range(SHAPE[0]), SHAPE[1:]), Condition())


def theirs(scheduler: DDPMScheduler | DDIMScheduler) -> Callable[[], Tensor]:
    network = Instant()

    @torch.no_grad()
    def sample() -> Tensor:
        x_t = torch.randn(SHAPE)
        scheduler.set_timesteps(NUM_STEPS)
        for t in scheduler.timesteps:
            x_t = scheduler.step(network(x_t, t, Condition()), t, x_t).prev_sample
        return x_t

    return sample


def seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def main() -> None:
    process = GaussianProcess(LinearSchedule())
    loops = {
        "ancestral": ours(Ancestral(process, NUM_STEPS, LeadingTimes())),
        "diffusers DDPMScheduler": theirs(DDPMScheduler(clip_sample=True)),
        "ddim": ours(DDIM(process, NUM_STEPS, time_grid=LeadingTimes())),
        "diffusers DDIMScheduler": theirs(DDIMScheduler(clip_sample=True)),
    }
    network = UNet(3, 3, resolution=32).eval()  # unet_cifar10
    x_t, t = torch.randn(SHAPE), torch.zeros(SHAPE[0])

    @torch.no_grad()
    def evaluation() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            answer: Tensor = network(x_t, t, Condition())
        return answer

    timed: dict[str, list[float]] = {name: [] for name in loops}
    network_seconds = []
    evaluation()
    for _ in range(ROUNDS):  # interleaved: what disturbs the machine disturbs all
        for name, loop in loops.items():
            timed[name].append(seconds(loop) / NUM_STEPS)
        network_seconds.append(seconds(evaluation))
    step = statistics.median(network_seconds)
    print(f"unet_cifar10, batch 16, bfloat16, {torch.get_num_threads()} threads: {1000 * step:.0f} ms an evaluation")
    for name, values in timed.items():
        own = statistics.median(values)
        print(f"{name:24} {1e6 * own:6.0f} us a step outside the network, {100 * own / step:.2f}% of the evaluation")


if __name__ == "__main__":
    main()

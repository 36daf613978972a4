"""Inpainting with each posterior sampler, compared with plain DDIM and with diffusers' RePaintPipeline.

    python benchmarks/editing.py

All methods fill the middle half of the same images on one thread, in float32, with networks of the size unet_tiny with
random weights. Seconds are processor time, which other jobs of the machine change less than elapsed time. Rows without
a peer state the cost of a method in multiples of plain DDIM with the same steps. The comparison with diffusers has the
same steps, jumps, and fraction of fresh noise (eta = 1), with the network of each library and with the same network,
which leaves only the difference between the samplers.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from measuring import Row, interleave, main
from network import SHAPES, ours, theirs, without_zeros
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.inverse_problems import (
    DDNM,
    DDRM,
    DPS,
    MMPS,
    Inpainting,
    InpaintingNetwork,
    Measurement,
    PiGDM,
    PosteriorSampler,
    RePaint,
    Replace,
)
from diffusion_lab.networks import Blocks, Condition, FromDiffusers, Network, UNet
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, LeadingTimes

SIZE, BATCH_SIZE, NUM_STEPS = "unet_tiny", 8, 20
SHAPE = SHAPES[SIZE][1:]
PROCESS = GaussianProcess(LinearSchedule())
MEASURED = "processor time of one image on one thread"
REPAINT = RePaint(jump_length=5, num_resamples=3)
POSTERIORS: tuple[PosteriorSampler, ...] = (
    InpaintingNetwork(), Replace(), DDNM(), DDRM(), REPAINT, DPS(), PiGDM(), MMPS(),
)  # fmt: skip


def sampler(eta: float) -> DDIM:
    return DDIM(PROCESS, NUM_STEPS, eta=eta, time_grid=LeadingTimes())


def hole() -> Tensor:
    """Return the middle half of the columns, bool [H, W]."""
    missing = torch.zeros(SHAPE[1:], dtype=torch.bool)
    missing[:, SHAPE[2] // 4 : SHAPE[2] * 3 // 4] = True
    return missing


def images() -> Tensor:
    return torch.rand(BATCH_SIZE, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def inpainting_network() -> UNet:
    """Return the network of the size unet_tiny that also receives the image with the hole and the mask."""
    channels = SHAPE[0]
    return without_zeros(
        UNet(
            channels, channels, resolution=SHAPE[1], channels=32, channel_multipliers=(1, 2, 2),
            attention_resolutions=(7,), blocks=Blocks(num_groups=8), condition_channels=channels + 1,
        )
    )  # fmt: skip


def our_job(network: Network, posterior: PosteriorSampler | None, eta: float = 0.0) -> Callable[[], Tensor]:
    """Return the generation of a batch.  posterior: None for images without a measurement."""
    denoiser = Denoiser(network.eval().requires_grad_(False), PROCESS, Epsilon())
    measurement = Measurement.of(Inpainting(SHAPE, hole()), images())

    def sample() -> Tensor:
        noise = ImageNoise(range(BATCH_SIZE), SHAPE)
        if posterior is None:
            return sampler(eta).sample(denoiser, noise, Condition())
        return posterior.sample(sampler(eta), denoiser, measurement, noise)

    return sample


def their_job(network: nn.Module) -> Callable[[], object]:
    """Return inpainting of a batch by diffusers."""
    from diffusers import RePaintPipeline, RePaintScheduler

    pipeline = RePaintPipeline(network.eval(), RePaintScheduler())
    pipeline.set_progress_bar_config(disable=True)
    known, mask = images(), (~hole()).float().expand(BATCH_SIZE, 1, -1, -1)
    jumps = {"jump_length": REPAINT.jump_length, "jump_n_sample": REPAINT.num_resamples}
    return lambda: pipeline(known, mask, num_inference_steps=NUM_STEPS, eta=1.0, output_type="np", **jumps)


def per_image(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds per image of each job."""

    def seconds(job: Callable[[], object]) -> float:
        started = time.process_time()
        job()
        return (time.process_time() - started) / BATCH_SIZE

    return interleave({name: lambda job=job: seconds(job) for name, job in jobs.items()}, rounds)


def costs(rounds: int) -> list[Row]:
    """Measure each posterior sampler next to plain DDIM."""
    network, trained = ours(SIZE), inpainting_network()
    jobs: dict[str, Callable[[], object]] = {"ddim": our_job(network, None)}
    for posterior in POSTERIORS:
        jobs[posterior.name] = our_job(trained if posterior.name == "network" else network, posterior)
    seconds, what = per_image(jobs, rounds), f"{SIZE}, batch {BATCH_SIZE}, {NUM_STEPS} steps: {MEASURED}"
    found = [Row(f"{what}, plain DDIM", "s", seconds["ddim"], [], "", note=f"{NUM_STEPS} evaluations of the network")]
    for posterior in POSTERIORS:
        taken = seconds[posterior.name]
        ratio = statistics.median(mine / plain for mine, plain in zip(taken, seconds["ddim"], strict=True))
        evaluations = posterior.num_evaluations(sampler(eta=0.0))
        note = f"{ratio:.3g} times plain DDIM, {evaluations} evaluations of the network{backward_passes(posterior)}"
        found.append(Row(f"{what}, posterior={posterior.name}", "s", taken, [], "", note=note))
    return found


def backward_passes(posterior: PosteriorSampler) -> str:
    """Return the part of a note that states the number of backward passes for each evaluation."""
    if isinstance(posterior, MMPS):
        return f" with up to {posterior.num_iterations + 1} backward passes each"
    return " with a backward pass each" if isinstance(posterior, DPS | PiGDM) else ""


def comparison(rounds: int) -> list[Row]:
    """Measure `RePaint` next to diffusers' pipeline."""
    shared = theirs(SIZE)
    adapted = our_job(FromDiffusers(shared), REPAINT, eta=1.0)
    seconds = per_image(
        {"own": our_job(ours(SIZE), REPAINT, eta=1.0), "shared": adapted, "theirs": their_job(shared)}, rounds
    )
    evaluations, peer = REPAINT.num_evaluations(sampler(eta=1.0)), "diffusers' RePaintPipeline"
    what = f"{SIZE}, batch {BATCH_SIZE}, repaint, {evaluations} evaluations of the network: {MEASURED}"
    return [
        Row(f"{what}{which}", "s", seconds[name], seconds["theirs"], peer, 1.0)
        for name, which in (("own", ", each library's U-Net"), ("shared", ", both with diffusers' UNet2DModel"))
    ]


def rows(arguments: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(1)
    return [*comparison(arguments.rounds), *costs(arguments.rounds)]


if __name__ == "__main__":
    main(__doc__, rows)

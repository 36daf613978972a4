"""Our U-Net compared with diffusers' UNet2DModel at the same settings and number of parameters.

    python benchmarks/network.py

Measures a forward and backward pass; inference, as in a sampler; images per second of DDIM with 50 steps, where
diffusers uses its pipeline and default precision; the activations that the forward pass stores for the backward pass;
and the peak memory of a training step, in a separate process for each network.
"""

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import peers
import torch
from measuring import Row, interleave, main, peak_memory, timed
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Blocks, Condition, UNet
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, LeadingTimes

Network = TypeVar("Network", bound=nn.Module)
Forward = Callable[[Tensor, Tensor], Tensor]

SHAPES = {"unet_cifar10": (16, 3, 32, 32), "unet_tiny": (128, 1, 28, 28)}


def ours(model: str, *, checkpointing: bool = False) -> UNet:
    """Return our U-Net of the choice `model`, in training mode."""
    torch.manual_seed(0)
    if model == "unet_cifar10":
        return without_zeros(UNet(3, 3, resolution=32, blocks=Blocks(dropout=0.1, checkpointing=checkpointing)))
    blocks = Blocks(num_groups=8, checkpointing=checkpointing)
    return without_zeros(
        UNet(1, 1, resolution=28, channels=32, channel_multipliers=(1, 2, 2), attention_resolutions=(7,), blocks=blocks)
    )


def theirs(model: str) -> nn.Module:
    """Return diffusers' UNet2DModel at the settings of our choice `model`, in training mode."""
    torch.manual_seed(0)
    _, channels, side, _ = SHAPES[model]
    dropout = 0.1 if model == "unet_cifar10" else 0.0
    return without_zeros(peers.diffusers_network(model, channels=channels, side=side, dropout=dropout))


def without_zeros(network: Network) -> Network:
    """Replace parameters that are initialized to zero, which would make the backward pass cheaper than in training."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return network.train()


def forward_of(network: nn.Module) -> Forward:
    """Return the forward pass of a network of either library as a function (x_t, time) -> output."""
    if isinstance(network, UNet):
        return lambda x, time: network(x, time, Condition())
    return lambda x, time: network(x, time, return_dict=False)[0]


def train_pass(network: nn.Module, x: Tensor, time: Tensor, bf16: bool) -> None:
    """Run one forward and backward pass."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = forward_of(network)(x, time)
    torch.autograd.backward(output.float().square().mean())


@torch.inference_mode()
def inference_pass(network: nn.Module, x: Tensor, time: Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        forward_of(network)(x, time)


def passes(model: str, rounds: int) -> list[Row]:
    """Measure training and inference of one network in both precisions."""
    x, time = torch.randn(SHAPES[model]), torch.randint(0, 1000, (SHAPES[model][0],)).float()
    networks = {"ours": ours(model), "theirs": theirs(model)}
    counts = {sum(parameter.numel() for parameter in network.parameters()) for network in networks.values()}
    if len(counts) != 1:
        raise RuntimeError(f"both networks must have the same number of parameters, got {counts}.")
    found = []
    for job, name in ((train_pass, "forward and backward"), (inference_pass, "inference")):
        jobs = {
            f"{who}, {precision}": partial(timed, partial(job, network, x, time, precision == "bfloat16"))
            for who, network in networks.items()
            for precision in ("float32", "bfloat16")
        }
        for network in networks.values():
            network.train(job is train_pass)
        seconds = interleave(jobs, rounds)
        what = f"{model}, batch {len(x)}: {name}"
        for precision in ("float32", "bfloat16"):
            sides = seconds[f"ours, {precision}"], seconds[f"theirs, {precision}"]
            found.append(Row(f"{what}, {precision}", "s", *sides, "diffusers' UNet2DModel", 1.0))
        if job is inference_pass:
            sides = seconds["ours, bfloat16"], seconds["theirs, float32"]
            name = "diffusers' UNet2DModel in its default float32"
            found.append(Row(f"{what}, default precision (ours: bfloat16)", "s", *sides, name, 1.7))
    return found


def images_per_second(model: str, rounds: int, num_images: int) -> Row:
    """Measure DDIM with 50 steps."""
    from diffusers import DDIMPipeline, DDIMScheduler

    _, *shape = SHAPES[model]
    process = GaussianProcess(LinearSchedule())
    sampler = DDIM(process, 50, time_grid=LeadingTimes())
    denoiser = Denoiser(ours(model).eval(), process, Epsilon())
    pipeline = DDIMPipeline(theirs(model).eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def our_rate() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return num_images / timed(
                lambda: sampler.sample(denoiser, ImageNoise(range(num_images), shape), Condition())
            )

    def their_rate() -> float:
        return num_images / timed(lambda: pipeline(num_images, num_inference_steps=50, output_type="np"))

    rates = interleave({"ours": our_rate, "theirs": their_rate}, rounds)
    name = "diffusers' DDIMPipeline"
    return Row(f"{model}: DDIM with 50 steps", "images/s", *rates.values(), name, 1.7, more_is_better=True)


def saved_bytes(network: nn.Module, x: Tensor, time: Tensor) -> int:
    """Return the bytes of the tensors that a forward pass saves for the backward pass, weights excluded."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward_of(network)(x, time)
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del output
    saved.clear()
    gc.collect()
    return total


def memory(model: str) -> list[Row]:
    """Measure the saved activations and the peak memory of a training step."""
    x, time = torch.randn(SHAPES[model]), torch.randint(0, 1000, (SHAPES[model][0],)).float()
    what, name = f"{model}, batch {len(x)}", "diffusers' UNet2DModel"
    saved = [saved_bytes(network, x, time) / 2**20 for network in (ours(model), theirs(model))]
    peaks = []
    for who in ("ours", "theirs"):
        command = [sys.executable, "-W", "ignore", __file__, "--peak", f"{who} {model}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    checkpointed = saved_bytes(ours(model, checkpointing=True), x, time) / 2**20
    return [
        Row(
            f"{what}: activations saved for the backward pass, float32",
            "MB",
            saved[:1],
            saved[1:],
            name,
            1.0,
            note=f"{checkpointed:,.0f} MB with activation checkpointing",
        ),
        Row(
            f"{what}: peak memory of a step, float32",
            "MB",
            peaks[:1],
            peaks[1:],
            name,
            1.0,
            note="growth of the process",
        ),
    ]


def print_peak(who_and_model: str) -> None:
    """Run two training steps and print by how many MB the peak memory of this process grows."""
    who, model = who_and_model.split()
    network = ours(model) if who == "ours" else theirs(model)
    x, time = torch.randn(SHAPES[model]), torch.randint(0, 1000, (SHAPES[model][0],)).float()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    with torch.inference_mode():
        forward_of(network)(x[:1], time[:1])
    before = peak_memory()
    for _ in range(2):
        train_pass(network, x, time, bf16=False)
        optimizer.step()
    print(peak_memory() - before)


def rows(arguments: argparse.Namespace) -> list[Row]:
    if arguments.peak:
        print_peak(arguments.peak)
        return []
    found = [row for model in SHAPES for row in passes(model, arguments.rounds)]
    found += [
        images_per_second(model, min(arguments.rounds, 2), n) for model, n in (("unet_cifar10", 8), ("unet_tiny", 64))
    ]
    return [*found, *(row for model in SHAPES for row in memory(model))]


if __name__ == "__main__":
    main(__doc__, rows, peak=(str, "", argparse.SUPPRESS))

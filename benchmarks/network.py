"""Networks alone, beside diffusers' UNet2DModel at the same settings and number of parameters.

    python benchmarks/network.py

A forward and a backward pass; an evaluation, as a sampler asks for one; images a second of DDIM with 50 steps, theirs
by its pipeline in its own precision; what the forward pass keeps for the backward pass; the most memory that a
training step takes, each in a process of its own.
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
from measuring import Row, in_turns, main, peak_memory, timed
from torch import Tensor, nn

from diffusion_lab.denoiser import Denoiser
from diffusion_lab.networks import Blocks, Condition, UNet
from diffusion_lab.process import Epsilon, GaussianProcess, LinearSchedule
from diffusion_lab.randomness import ImageNoise
from diffusion_lab.samplers import DDIM, LeadingTimes

Network = TypeVar("Network", bound=nn.Module)
Answer = Callable[[Tensor, Tensor], Tensor]

SHAPES = {"unet_cifar10": (16, 3, 32, 32), "unet_tiny": (128, 1, 28, 28)}


def ours(model: str, *, checkpointing: bool = False) -> UNet:
    torch.manual_seed(0)
    if model == "unet_cifar10":
        return filled(UNet(3, 3, resolution=32, blocks=Blocks(dropout=0.1, checkpointing=checkpointing)))
    blocks = Blocks(num_groups=8, checkpointing=checkpointing)
    return filled(
        UNet(1, 1, resolution=28, channels=32, channel_multipliers=(1, 2, 2), attention_resolutions=(7,), blocks=blocks)
    )


def theirs(model: str) -> nn.Module:
    torch.manual_seed(0)
    _, channels, side, _ = SHAPES[model]
    dropout = 0.1 if model == "unet_cifar10" else 0.0
    return filled(peers.diffusers_network(model, channels=channels, side=side, dropout=dropout))


def filled(network: Network) -> Network:
    """Without zeros that would let a backward pass off lightly."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return network.train()


def answers(network: nn.Module) -> Answer:
    if isinstance(network, UNet):
        return lambda x, time: network(x, time, Condition())
    return lambda x, time: network(x, time, return_dict=False)[0]


def learn(network: nn.Module, x: Tensor, time: Tensor, bf16: bool) -> None:
    """One forward and backward pass."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = answers(network)(x, time)
    torch.autograd.backward(output.float().square().mean())


@torch.inference_mode()
def evaluate(network: nn.Module, x: Tensor, time: Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        answers(network)(x, time)


def passes(model: str, rounds: int) -> list[Row]:
    """Training and evaluation of one network, in both precisions."""
    x, time = torch.randn(SHAPES[model]), torch.randint(0, 1000, (SHAPES[model][0],)).float()
    mine, other = ours(model), theirs(model)
    counts = {sum(parameter.numel() for parameter in network.parameters()) for network in (mine, other)}
    if len(counts) != 1:
        raise RuntimeError(f"the networks are not the same: {counts} parameters")
    found = []
    for job, name in ((learn, "forward and backward"), (evaluate, "evaluation")):
        jobs = {
            f"{who}, {precision}": partial(timed, partial(job, network, x, time, precision == "bfloat16"))
            for who, network in (("ours", mine), ("theirs", other))
            for precision in ("float32", "bfloat16")
        }
        for network in (mine, other):
            network.train(job is learn)
        seconds = in_turns(jobs, rounds)
        what = f"{model}, batch {len(x)}: {name}"
        for precision in ("float32", "bfloat16"):
            sides = seconds[f"ours, {precision}"], seconds[f"theirs, {precision}"]
            found.append(Row(f"{what}, {precision}", "s", *sides, "diffusers' UNet2DModel", 1.0))
        if job is evaluate:
            sides = seconds["ours, bfloat16"], seconds["theirs, float32"]
            name = "diffusers' UNet2DModel in its default float32"
            found.append(Row(f"{what}, our default precision, bfloat16", "s", *sides, name, 1.7))
    return found


def images_per_second(model: str, rounds: int, num_images: int) -> Row:
    """Of DDIM with 50 steps."""
    from diffusers import DDIMPipeline, DDIMScheduler

    _, *shape = SHAPES[model]
    process = GaussianProcess(LinearSchedule())
    sampler = DDIM(process, 50, time_grid=LeadingTimes())
    denoiser = Denoiser(ours(model).eval(), process, Epsilon())
    pipeline = DDIMPipeline(theirs(model).eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def mine() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return num_images / timed(
                lambda: sampler.sample(denoiser, ImageNoise(range(num_images), shape), Condition())
            )

    def other() -> float:
        return num_images / timed(lambda: pipeline(num_images, num_inference_steps=50, output_type="np"))

    rates = in_turns({"ours": mine, "theirs": other}, rounds)
    name = "diffusers' DDIMPipeline"
    return Row(f"{model}: DDIM of 50 steps", "images/s", *rates.values(), name, 1.7, more_is_better=True)


def kept_bytes(network: nn.Module, x: Tensor, time: Tensor) -> int:
    """Of all activations that a forward pass keeps for the backward pass, the weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = answers(network)(x, time)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    kept.clear()
    gc.collect()
    return total


def memory(model: str) -> list[Row]:
    x, time = torch.randn(SHAPES[model]), torch.randint(0, 1000, (SHAPES[model][0],)).float()
    what, name = f"{model}, batch {len(x)}", "diffusers' UNet2DModel"
    kept = [kept_bytes(network, x, time) / 2**20 for network in (ours(model), theirs(model))]
    peaks = []
    for who in ("ours", "theirs"):
        command = [sys.executable, "-W", "ignore", __file__, "--peak", f"{who} {model}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    less = kept_bytes(ours(model, checkpointing=True), x, time) / 2**20
    return [
        Row(
            f"{what}: activations kept, float32",
            "MB",
            kept[:1],
            kept[1:],
            name,
            1.0,
            note=f"checkpointed {less:,.0f} MB",
        ),
        Row(f"{what}: peak of a step, float32", "MB", peaks[:1], peaks[1:], name, 1.0, note="growth of the process"),
    ]


def peak(words: str) -> None:
    """Prints by how many MB two steps of training make this process grow at most."""
    who, model = words.split()
    network = ours(model) if who == "ours" else theirs(model)
    x, time = torch.randn(SHAPES[model]), torch.randint(0, 1000, (SHAPES[model][0],)).float()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    with torch.inference_mode():
        answers(network)(x[:1], time[:1])
    before = peak_memory()
    for _ in range(2):
        learn(network, x, time, bf16=False)
        optimizer.step()
    print(peak_memory() - before)


def rows(arguments: argparse.Namespace) -> list[Row]:
    if arguments.peak:
        peak(arguments.peak)
        return []
    found = [row for model in SHAPES for row in passes(model, arguments.rounds)]
    found += [
        images_per_second(model, min(arguments.rounds, 2), n) for model, n in (("unet_cifar10", 8), ("unet_tiny", 64))
    ]
    return [*found, *(row for model in SHAPES for row in memory(model))]


if __name__ == "__main__":
    main(__doc__, rows, peak=(str, "", argparse.SUPPRESS))

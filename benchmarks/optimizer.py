"""What moves the weights: Adam's step, clipping and the average, at the sizes of our networks.

    python benchmarks/optimizer.py

Ours: Adam's fused kernel and one pass over all weights for the average. Beside it, PyTorch's default Adam with the
average of diffusers' EMAModel, with that of ema-pytorch (which denoising-diffusion-pytorch uses) and with
AveragedModel of PyTorch, each updated at every step.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from measuring import Row, in_turns, main, timed
from network import ours
from torch import nn

from diffusion_lab.ema.averages import EMA, ConstantDecay
from diffusion_lab.training.optimizers import Adam


def with_gradients(model: str) -> nn.Module:
    network = ours(model)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network


def mine(model: str) -> tuple[Callable[[], object], Callable[[], object]]:
    network = with_gradients(model)
    ema, (optimizer, rates) = EMA(network, {"ema": ConstantDecay()}), Adam()(network.parameters())
    return lambda: (optimizer.step(), rates), lambda: ema.update(network)  # the rates must live as long


def theirs(model: str, average: str) -> tuple[Callable[[], object], Callable[[], object]]:
    network = with_gradients(model)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    if average == "diffusers' EMAModel":
        from diffusers.training_utils import EMAModel

        ema = EMAModel(network.parameters(), decay=0.9999)
        return optimizer.step, lambda: ema.step(network.parameters())
    if average == "ema-pytorch":
        import ema_pytorch

        averaged = ema_pytorch.EMA(network, beta=0.9999, update_every=1, update_after_step=0)
        return optimizer.step, averaged.update
    averaged_model = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999)
    )
    return optimizer.step, lambda: averaged_model.update_parameters(network)


def milliseconds(job: Callable[[], object]) -> float:
    """Of the last of three calls: caches hold what this job left, not what the one before it did."""
    return 1000 * [timed(job) for _ in range(3)][-1]


def rows(arguments: argparse.Namespace) -> list[Row]:
    found = []
    names = ("diffusers' EMAModel", "ema-pytorch", "PyTorch's AveragedModel")
    for model in ("unet_cifar10", "unet_tiny"):
        pairs = {"ours": mine(model)} | {name: theirs(model, name) for name in names}
        steps = {name: step for name, (step, _) in pairs.items()}
        averages = {f"{name}, average": average for name, (_, average) in pairs.items()}
        jobs = {name: lambda job=job: milliseconds(job) for name, job in (steps | averages).items()}
        taken = in_turns(jobs, 3 * arguments.rounds)
        both = [[a + b for a, b in zip(taken[n], taken[f"{n}, average"], strict=True)] for n in ("ours", names[0])]
        size = sum(parameter.numel() for parameter in ours(model).parameters())
        # Adam reads weight, gradient and both moments and writes three of them; the average reads two and writes one.
        rate = 10 * 4 * size / statistics.median(both[0]) * 1000 / 1e9
        found.append(
            Row(
                f"{model}: Adam and average", "ms", *both, f"Adam's default and {names[0]}", 4.0,
                note=f"ours moves {rate:.0f} GB/s",
            )
        )  # fmt: skip
        for name in names:
            sides = taken["ours, average"], taken[f"{name}, average"]
            found.append(Row(f"{model}: average", "ms", *sides, name, 1.0))
    return found


if __name__ == "__main__":
    main(__doc__, rows)

"""The optimizer step and the EMA update, at the sizes of our networks.

    python benchmarks/optimizer.py

Ours uses Adam's fused kernel and updates the EMA in one pass over all weights. It is compared with PyTorch's default
Adam and the EMA of diffusers (EMAModel), of ema-pytorch (which denoising-diffusion-pytorch uses) and of PyTorch
(AveragedModel). Every EMA is updated at each step.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from measuring import Row, interleave, main, timed
from network import ours
from torch import nn

from diffusion_lab.ema import EMA, ConstantDecay


def network_with_gradients(model: str) -> nn.Module:
    network = ours(model)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network


def our_updates(model: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return our optimizer step and our EMA update."""
    network = network_with_gradients(model)
    ema, optimizer = EMA(network, {"ema": ConstantDecay()}), torch.optim.Adam(network.parameters(), lr=2e-4, fused=True)
    return optimizer.step, lambda: ema.update(network)


def peer_updates(model: str, library: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the step of PyTorch's default Adam and the EMA update of a library."""
    network = network_with_gradients(model)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    if library == "diffusers' EMAModel":
        from diffusers.training_utils import EMAModel

        ema = EMAModel(network.parameters(), decay=0.9999)
        return optimizer.step, lambda: ema.step(network.parameters())
    if library == "ema-pytorch":
        import ema_pytorch

        averaged = ema_pytorch.EMA(network, beta=0.9999, update_every=1, update_after_step=0)
        return optimizer.step, averaged.update
    averaged_model = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999)
    )
    return optimizer.step, lambda: averaged_model.update_parameters(network)


def milliseconds(job: Callable[[], object]) -> float:
    """Return the duration of the last of three calls: by then the caches hold data of this job only."""
    return 1000 * [timed(job) for _ in range(3)][-1]


def rows(arguments: argparse.Namespace) -> list[Row]:
    found = []
    names = ("diffusers' EMAModel", "ema-pytorch", "PyTorch's AveragedModel")
    for model in ("unet_cifar10", "unet_tiny"):
        pairs = {"ours": our_updates(model)} | {name: peer_updates(model, name) for name in names}
        steps = {name: step for name, (step, _) in pairs.items()}
        updates = {f"{name}, EMA": update for name, (_, update) in pairs.items()}
        jobs = {name: lambda job=job: milliseconds(job) for name, job in (steps | updates).items()}
        taken = interleave(jobs, 3 * arguments.rounds)
        both = [[a + b for a, b in zip(taken[n], taken[f"{n}, EMA"], strict=True)] for n in ("ours", names[0])]
        size = sum(parameter.numel() for parameter in ours(model).parameters())
        # Adam reads weight, gradient and both moments and writes three of them; the EMA reads two and writes one.
        rate = 10 * 4 * size / statistics.median(both[0]) * 1000 / 1e9
        found.append(
            Row(
                f"{model}: Adam step and EMA update", "ms", *both, f"default Adam and {names[0]}", 4.0,
                note=f"ours moves {rate:.0f} GB/s",
            )
        )  # fmt: skip
        for name in names:
            sides = taken["ours, EMA"], taken[f"{name}, EMA"]
            found.append(Row(f"{model}: EMA update", "ms", *sides, name, 1.0))
    return found


if __name__ == "__main__":
    main(__doc__, rows)

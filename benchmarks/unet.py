"""A U-Net's forward and backward pass beside that of diffusers, and what activation checkpointing costs and saves.

python benchmarks/unet.py [--batch-size 16] [--rounds 7]

Same settings, same weights, same input; rounds in turns within one process. Needs pip install -e '.[bench]'.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffusion_lab.networks import Blocks, Condition, UNet

Network = TypeVar("Network", bound=nn.Module)


def ours(*, checkpointing: bool = False) -> UNet:
    """unet_cifar10."""
    torch.manual_seed(0)
    network = UNet(3, 3, resolution=32, blocks=Blocks(dropout=0.1, checkpointing=checkpointing))
    return filled(network)


def theirs() -> UNet2DModel:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(128, 256, 256, 256), layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=None, dropout=0.1,
        flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-5,
    )  # fmt: skip
    return filled(network)


def filled(network: Network) -> Network:
    """Without zeros that would let a backward pass off lightly."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return network.train()


def step(answer: Callable[[Tensor, Tensor], Tensor], network: nn.Module, x: Tensor, time: Tensor, bf16: bool) -> float:
    """Seconds of one forward and backward pass."""
    network.zero_grad()
    started = _now()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = answer(x, time)
    torch.autograd.backward(output.float().square().mean())
    return _now() - started


def kept_bytes(network: UNet, x: Tensor, time: Tensor) -> int:
    """Of all activations that a forward pass keeps for the backward pass, the weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(x, time, Condition())
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    kept.clear()
    gc.collect()
    return total


def _now() -> float:
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    x, times = torch.randn(arguments.batch_size, 3, 32, 32), torch.randint(0, 1000, (arguments.batch_size,)).float()
    plain, checkpointed, peer = ours(), ours(checkpointing=True), theirs()
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (plain, peer)]
    print(f"parameters: ours {counts[0]:,}, diffusers {counts[1]:,}; batch {arguments.batch_size}")

    networks: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], nn.Module]] = {
        "ours": (lambda x, t: plain(x, t, Condition()), plain),
        "diffusers": (lambda x, t: peer(x, t, return_dict=False)[0], peer),
        "ours, checkpointing": (lambda x, t: checkpointed(x, t, Condition()), checkpointed),
    }
    for bf16 in (False, True):
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        for round_ in range(arguments.rounds + 1):
            order = list(networks)[round_ % 3 :] + list(networks)[: round_ % 3]
            for name in order:
                taken = step(*networks[name], x, times, bf16)
                if round_:  # the first warms up
                    seconds[name].append(taken)
        print("bfloat16" if bf16 else "float32")
        reference = statistics.median(seconds["diffusers"])
        for name, taken in seconds.items():
            median = statistics.median(taken)
            spread = f"{min(taken):.3f} to {max(taken):.3f}"
            print(f"  {name:20} {median:.3f} s ({spread}), {reference / median:.2f} times diffusers' speed")
    for name, network in (("plain", plain), ("checkpointing", checkpointed)):
        print(f"activations kept, {name}: {kept_bytes(network, x, times) / 2**20:,.0f} MB")


if __name__ == "__main__":
    main()

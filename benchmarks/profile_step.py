"""Profile a training step: time per kind of operator, and the step's rate compared with that of a matrix product.

    python benchmarks/profile_step.py

A step consists of the forward and backward pass, gradient clipping, Adam and the EMA update. Both networks are profiled
in both precisions. The step's floating-point operations per second are compared with the rate of a large matrix product
that is measured in the same run.
"""

import argparse
import statistics
from collections import Counter

import torch
from measuring import timed
from network import SHAPES, ours
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lab.commands import malloc
from diffusion_lab.ema import EMA, ConstantDecay
from diffusion_lab.networks import Condition

KINDS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("mkldnn_convolution", "convolution", "conv2d", "slow_conv"),
    "linear layers": ("addmm", "mm", "bmm", "linear"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "group norms": ("group_norm",),
    "SiLU": ("silu",),
    "dropout": ("dropout", "bernoulli"),
    "casts and copies": ("copy_", "to_copy", "cat", "clone", "fill_", "zero_"),
    "Adam, clipping, EMA": ("_fused_adam", "_foreach", "lerp", "linalg_vector_norm", "norm"),
}


def kind_of(operator: str) -> str:
    name = operator.removeprefix("aten::")
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def matmul_rate(bf16: bool) -> float:
    """Return the floating-point operations per second of a product of two 4096 x 4096 matrices."""
    a, b = (torch.randn(4096, 4096, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    a @ b
    return 2 * 4096**3 / min(timed(lambda: a @ b) for _ in range(5))


def report(model: str, bf16: bool) -> None:
    """Print the rate of a step and the fraction of the time that each kind of operator takes."""
    network, x = ours(model), torch.randn(SHAPES[model])
    time = torch.randint(0, 1000, (len(x),)).float()
    optimizer, ema = torch.optim.Adam(network.parameters(), lr=2e-4, fused=True), EMA(network, {"ema": ConstantDecay()})

    def step() -> None:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = network(x, time, Condition())
        torch.autograd.backward((output.float() - x).square().mean())
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema.update(network)

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    seconds = statistics.median(timed(step) for _ in range(5))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    shares: Counter[str] = Counter()
    for event in profiled.key_averages():
        shares[kind_of(event.key)] += event.self_cpu_time_total
    operations, limit = counter.get_total_flops(), matmul_rate(bf16)
    name, rate = f"{model}, batch {len(x)}, {'bfloat16' if bf16 else 'float32'}", operations / seconds
    print(
        f"{name}: {seconds:.3f} s per step, {operations / len(x) / 1e9:.2f} GFLOP per image, {rate / 1e9:.0f} GFLOP/s, "
        f"{rate / limit:.0%} of a matrix product's {limit / 1e9:.0f} GFLOP/s"
    )
    print("| operators | share |\n|---|---|")
    for kind, time_taken in shares.most_common():
        print(f"| {kind} | {time_taken / shares.total():.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    malloc.keep_freed_memory()  # our commands do the same
    for model in SHAPES:
        for bf16 in (False, True):
            report(model, bf16)


if __name__ == "__main__":
    main()

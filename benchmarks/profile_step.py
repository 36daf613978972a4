"""Where the time of a training step goes: shares of the operators, and how near the step is to the machine's limit.

    python benchmarks/profile_step.py

Forward, backward, clipping, Adam and average of both networks in both precisions; beside it the floating-point
operations of the step over the rate of a large matrix product measured in the same run.
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
from diffusion_lab.ema.averages import EMA, ConstantDecay
from diffusion_lab.networks import Condition
from diffusion_lab.training.optimizers import Adam

KINDS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("mkldnn_convolution", "convolution", "conv2d", "slow_conv"),
    "linear maps": ("addmm", "mm", "bmm", "linear"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "group norms": ("group_norm",),
    "SiLU": ("silu",),
    "dropout": ("dropout", "bernoulli"),
    "casts and copies": ("copy_", "to_copy", "cat", "clone", "fill_", "zero_"),
    "Adam, clipping, average": ("_fused_adam", "_foreach", "lerp", "linalg_vector_norm", "norm"),
}


def kind(operator: str) -> str:
    name = operator.removeprefix("aten::")
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


def peak(bf16: bool) -> float:
    """Operations a second of a product of two 4096 x 4096 matrices."""
    a, b = (torch.randn(4096, 4096, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    a @ b
    return 2 * 4096**3 / min(timed(lambda: a @ b) for _ in range(5))


def report(model: str, bf16: bool) -> None:
    network, x = ours(model), torch.randn(SHAPES[model])
    time = torch.randint(0, 1000, (len(x),)).float()
    (optimizer, rates), ema = Adam()(network.parameters()), EMA(network, {"ema": ConstantDecay()})

    def step() -> None:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = network(x, time, Condition())
        torch.autograd.backward((output.float() - x).square().mean())
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema.update(network)
        rates.step()

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    seconds = statistics.median(timed(step) for _ in range(5))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    shares: Counter[str] = Counter()
    for event in profiled.key_averages():
        shares[kind(event.key)] += event.self_cpu_time_total
    operations, limit = counter.get_total_flops(), peak(bf16)
    name, rate = f"{model}, batch {len(x)}, {'bfloat16' if bf16 else 'float32'}", operations / seconds
    print(
        f"{name}: {seconds:.3f} s a step, {operations / len(x) / 1e9:.2f} GFLOP an image, {rate / 1e9:.0f} GFLOP/s of "
        f"a matrix product's {limit / 1e9:.0f}: {rate / limit:.0%}"
    )
    print("| operators | share |\n|---|---|")
    for group, taken in shares.most_common():
        print(f"| {group} | {taken / shares.total():.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    malloc.keep_freed()  # as our commands do
    for model in SHAPES:
        for bf16 in (False, True):
            report(model, bf16)


if __name__ == "__main__":
    main()

"""How costs scale; draws docs/scaling.png.

    python benchmarks/scaling.py

Measures a training step (forward, backward, Adam, EMA) of a network like unet_tiny against batch size, image side and
width, compared with diffusers' UNet2DModel with default Adam and EMAModel; the parts of an evaluation against the
number of samples; and a sweep against the number of its runs of one step each.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from matplotlib import pyplot
from measuring import ROOT, Row, interleave, main, timed
from torch import Tensor, nn

from diffusion_lab.ema import EMA, ConstantDecay
from diffusion_lab.networks import Blocks, Condition, UNet

BATCHES, SIDES, WIDTHS = (4, 8, 16, 32, 64, 128), (16, 32, 64), (16, 32, 64, 128)
SAMPLES, RUNS = (100, 200, 400, 800, 1600), (1, 2, 4, 8)


def ours(batch: int, side: int, width: int, bf16: bool) -> Callable[[], float]:
    network = UNet(
        1, 1, resolution=side, channels=width, channel_multipliers=(1, 2, 2), attention_resolutions=(side // 4,),
        blocks=Blocks(num_groups=8),
    )  # fmt: skip
    optimizer, ema = torch.optim.Adam(network.parameters(), lr=2e-4, fused=True), EMA(network, {"ema": ConstantDecay()})

    def update() -> None:
        optimizer.step()
        ema.update(network)

    return timed_step(network, lambda x, time: network(x, time, Condition()), update, batch, side, bf16)


def theirs(batch: int, side: int, width: int) -> Callable[[], float]:
    network = UNet2DModel(
        sample_size=side, in_channels=1, out_channels=1, layers_per_block=2, norm_num_groups=8,
        block_out_channels=(width, 2 * width, 2 * width), attention_head_dim=None,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    optimizer, ema = torch.optim.AdamW(network.parameters()), EMAModel(network.parameters())

    def update() -> None:
        optimizer.step()
        ema.step(network.parameters())

    return timed_step(network, lambda x, time: network(x, time).sample, update, batch, side, bf16=False)


def timed_step(
    network: nn.Module, forward: Callable[[Tensor, Tensor], Tensor], update: Callable[[], None], batch: int, side: int,
    bf16: bool,
) -> Callable[[], float]:  # fmt: skip
    """Return a function that runs one training step and returns its duration in seconds."""
    x, time = torch.randn(batch, 1, side, side), torch.randint(0, 1000, (batch,)).float()

    def step() -> None:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = forward(x, time)
        torch.autograd.backward((output.float() - x).square().mean())
        update()

    return lambda: timed(step)


def steps(
    values: Sequence[int], sizes_at: Callable[[int], tuple[int, int, int]], rounds: int
) -> dict[str, list[float]]:
    """Return the median seconds of a step at each value.  sizes_at: value -> (batch, side, width)."""
    found: dict[str, list[float]] = {"ours, bfloat16": [], "ours, float32": [], "diffusers, float32": []}
    for value in values:
        sides = (ours(*sizes_at(value), bf16=True), ours(*sizes_at(value), bf16=False), theirs(*sizes_at(value)))
        for name, seconds in interleave(dict(zip(found, sides, strict=True)), rounds).items():
            found[name].append(statistics.median(seconds))
    return found


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def evaluations(folder: Path) -> dict[str, list[float]]:
    """Return the seconds of each part of an evaluation for each number of samples; unet_quick after one step."""
    train(folder / "run")
    found: dict[str, list[float]] = {"sampling": [], "features": [], "statistics": []}
    for num_samples in SAMPLES:
        overrides = [f"run={folder / 'run'}", "sampler.num_steps=10", f"num_samples={num_samples}"]
        output_folder = folder / f"evaluation_{num_samples}"
        run("src/evaluate.py", *overrides, f"hydra.run.dir={output_folder}", f"work_folder={folder / 'images'}")
        record = json.loads(next(output_folder.glob("**/metrics.json")).read_text())
        for part, values in found.items():
            values.append(record["seconds"][part])
    return found


def train(folder: Path, *sweep: str) -> float:
    """Train unet_quick for one step and return the seconds of the command.  sweep: overrides that make it a sweep."""
    off = ["callbacks.measure_distance=null", "callbacks.sample_images=null"]
    place = ["-m", f"hydra.sweep.dir={folder}"] if sweep else [f"hydra.run.dir={folder}"]
    return timed(lambda: run("src/train.py", *place, "model=unet_quick", "trainer.max_steps=1", *off, *sweep))


def sweeps(folder: Path) -> list[float]:
    """Return the seconds of the complete command for each number of runs."""
    return [train(folder / str(count), f"seed={','.join(map(str, range(count)))}") for count in RUNS]


def draw(curves: dict[str, tuple[Sequence[int], dict[str, list[float]]]]) -> None:
    """Draw docs/scaling.png.  curves: label of the x axis -> (values, {series: seconds})."""
    figure, panels = pyplot.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
    for axes, (name, (values, series)) in zip(panels.flat, curves.items(), strict=False):
        for label, seconds in series.items():
            axes.plot(values, seconds, "-o", markersize=3, label=label)
        if len(series) > 1:
            axes.set(xscale="log", yscale="log")
        else:  # a sweep: linear axes, whose slope is the time that each run adds
            axes.set_ylim(bottom=0)
        axes.set(xlabel=name, ylabel="seconds")
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels.flat[-1].axis("off")
    figure.savefig(ROOT / "docs" / "scaling.png", dpi=110)


def rows(arguments: argparse.Namespace) -> list[Row]:
    rounds = min(arguments.rounds, 3)
    batch, side, width = 16, 32, 32
    curves = {
        "batch size (32 x 32 images, width 32)": (BATCHES, steps(BATCHES, lambda value: (value, side, width), rounds)),
        "image side (batch of 16, width 32)": (SIDES, steps(SIDES, lambda value: (batch, value, width), rounds)),
        "width (batch of 16, 32 x 32 images)": (WIDTHS, steps(WIDTHS, lambda value: (batch, side, value), rounds)),
    }
    with tempfile.TemporaryDirectory() as name:
        curves["samples in an evaluation"] = SAMPLES, evaluations(Path(name))
        curves["runs in a sweep"] = RUNS, {"complete command": sweeps(Path(name))}
    draw(curves)
    found = []
    for what, (values, series) in curves.items():
        for name, seconds in series.items():
            text = ", ".join(f"{value}: {taken:.3g}" for value, taken in zip(values, seconds, strict=True))
            print(f"{re.sub(' [(].*', '', what)}, {name}: {text} s")
    for what in list(curves)[:3]:
        values, series = curves[what]
        for value, our_seconds, their_seconds in zip(
            values, series["ours, float32"], series["diffusers, float32"], strict=True
        ):
            name = f"float32 training step, {what}: {value}"
            found.append(Row(name, "s", [our_seconds], [their_seconds], "diffusers", 1.0))
    return found


if __name__ == "__main__":
    main(__doc__, rows)

"""How costs grow: docs/scaling.png.

    python benchmarks/scaling.py

A training step (forward, backward, Adam, average) of unet_tiny's kind against batch, side and width, beside diffusers'
UNet2DModel with default Adam and EMAModel; an evaluation against the number of samples, by its parts; a sweep against
the number of its runs, each of one step.
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
from measuring import ROOT, Row, in_turns, main, timed
from torch import Tensor, nn

from diffusion_lab.ema.averages import EMA, ConstantDecay
from diffusion_lab.networks import Blocks, Condition, UNet
from diffusion_lab.training.optimizers import Adam

BATCHES, SIDES, WIDTHS = (4, 8, 16, 32, 64, 128), (16, 32, 64), (16, 32, 64, 128)
SAMPLES, RUNS = (100, 200, 400, 800, 1600), (1, 2, 4, 8)


def ours(batch: int, side: int, width: int, bf16: bool) -> Callable[[], float]:
    network = UNet(
        1, 1, resolution=side, channels=width, channel_multipliers=(1, 2, 2), attention_resolutions=(side // 4,),
        blocks=Blocks(num_groups=8),
    )  # fmt: skip
    (optimizer, rates), ema = Adam()(network.parameters()), EMA(network, {"ema": ConstantDecay()})

    def after() -> None:
        optimizer.step()
        ema.update(network)
        rates.step()

    return stepping(network, lambda x, time: network(x, time, Condition()), after, batch, side, bf16)


def theirs(batch: int, side: int, width: int) -> Callable[[], float]:
    network = UNet2DModel(
        sample_size=side, in_channels=1, out_channels=1, layers_per_block=2, norm_num_groups=8,
        block_out_channels=(width, 2 * width, 2 * width), attention_head_dim=None,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    optimizer, ema = torch.optim.AdamW(network.parameters()), EMAModel(network.parameters())

    def after() -> None:
        optimizer.step()
        ema.step(network.parameters())

    return stepping(network, lambda x, time: network(x, time).sample, after, batch, side, bf16=False)


def stepping(
    network: nn.Module, answer: Callable[[Tensor, Tensor], Tensor], after: Callable[[], None], batch: int, side: int,
    bf16: bool,
) -> Callable[[], float]:  # fmt: skip
    x, time = torch.randn(batch, 1, side, side), torch.randint(0, 1000, (batch,)).float()

    def step() -> None:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = answer(x, time)
        torch.autograd.backward((output.float() - x).square().mean())
        after()

    return lambda: timed(step)


def steps(values: Sequence[int], at: Callable[[int], tuple[int, int, int]], rounds: int) -> dict[str, list[float]]:
    """Median seconds of a step at each value.  at: value -> (batch, side, width)."""
    found: dict[str, list[float]] = {"ours, bfloat16": [], "ours, float32": [], "diffusers, float32": []}
    for value in values:
        sides = (ours(*at(value), bf16=True), ours(*at(value), bf16=False), theirs(*at(value)))
        for name, seconds in in_turns(dict(zip(found, sides, strict=True)), rounds).items():
            found[name].append(statistics.median(seconds))
    return found


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", *words], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def evaluations(folder: Path) -> dict[str, list[float]]:
    """Seconds of each part for each number of samples, of a network of unet_quick after one step."""
    train(folder / "run")
    found: dict[str, list[float]] = {"sampling": [], "features": [], "statistics": []}
    for num_samples in SAMPLES:
        words = [f"run={folder / 'run'}", "sampler.num_steps=10", f"num_samples={num_samples}"]
        written = folder / f"evaluation_{num_samples}"
        run("src/evaluate.py", *words, f"hydra.run.dir={written}", f"work_folder={folder / 'images'}")
        record = json.loads(next(written.glob("**/metrics.json")).read_text())
        for part, values in found.items():
            values.append(record["seconds"][part])
    return found


def train(folder: Path, *words: str) -> float:
    off = ["callbacks.measure_distance=null", "callbacks.sample_images=null"]
    place = ["-m", f"hydra.sweep.dir={folder}"] if words else [f"hydra.run.dir={folder}"]
    return timed(lambda: run("src/train.py", *place, "model=unet_quick", "trainer.max_steps=1", *off, *words))


def sweeps(folder: Path) -> list[float]:
    """Seconds of whole commands, for each number of runs."""
    return [train(folder / str(count), f"seed={','.join(map(str, range(count)))}") for count in RUNS]


def draw(curves: dict[str, tuple[Sequence[int], dict[str, list[float]]]]) -> None:
    figure, panels = pyplot.subplots(2, 3, figsize=(11, 6.5), layout="constrained")
    for axes, (name, (values, sides)) in zip(panels.flat, curves.items(), strict=False):
        for side, seconds in sides.items():
            axes.plot(values, seconds, "-o", markersize=3, label=side)
        if len(sides) > 1:
            axes.set(xscale="log", yscale="log")
        else:  # what a run adds to a sweep is the slope of a straight line
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
        "batch, of 32 x 32, width 32": (BATCHES, steps(BATCHES, lambda value: (value, side, width), rounds)),
        "side, of a batch of 16": (SIDES, steps(SIDES, lambda value: (batch, value, width), rounds)),
        "width, of a batch of 16": (WIDTHS, steps(WIDTHS, lambda value: (batch, side, value), rounds)),
    }
    with tempfile.TemporaryDirectory() as name:
        curves["samples of an evaluation"] = SAMPLES, evaluations(Path(name))
        curves["runs of a sweep"] = RUNS, {"whole command": sweeps(Path(name))}
    draw(curves)
    found = []
    for what, (values, sides) in curves.items():
        for name, seconds in sides.items():
            text = ", ".join(f"{value}: {taken:.3g}" for value, taken in zip(values, seconds, strict=True))
            print(f"{re.sub(', .*', '', what)}, {name}: {text} s")
    for what in list(curves)[:3]:
        values, sides = curves[what]
        for value, mine, other in zip(values, sides["ours, float32"], sides["diffusers, float32"], strict=True):
            found.append(Row(f"a step in float32, {what}: {value}", "s", [mine], [other], "diffusers", 1.0))
    return found


if __name__ == "__main__":
    main(__doc__, rows)

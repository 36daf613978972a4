"""A complete training step: data loading, noise, forward, backward, gradient clipping, Adam, EMA and logging.

    python benchmarks/training_step.py

Ours uses the objects that src/train.py builds: Lightning's Trainer and all callbacks that act at each step. It is
compared with the same computation in a bare PyTorch loop, and with diffusers' unconditional example and
denoising-diffusion-pytorch's Trainer, both at their default settings and with bfloat16 and Adam's fused kernel. Each
loop runs in a separate process that pauses between its steps, and the steps of the loops are measured in turns.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peers
import torch
from hydra import compose, initialize_config_dir
from measuring import ROOT, PausedLoop, Row, interleave, main, pause_after_each_step
from torch import Tensor, nn

from diffusion_lab.commands import malloc
from diffusion_lab.networks import Condition
from diffusion_lab.pixels import from_uint8
from diffusion_lab.runs.setup import training as training_setup

Loop = Callable[[Callable[[], None]], None]
"""A training loop.  Its argument is a function that it calls after each step."""

SIZES: dict[str, dict[str, Any]] = {
    "unet_cifar10": {"shape": (3, 32, 32), "batch_size": 16, "dropout": 0.1},
    "unet_tiny": {"shape": (1, 28, 28), "batch_size": 128, "dropout": 0.0},
}


def write_set(folder: Path, shape: tuple[int, int, int], num_images: int = 512) -> Tensor:
    """Write a data set of random pixels as image files and return the pixels, uint8 [N, C, H, W]."""
    pixels = torch.randint(0, 256, (num_images, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    peers.write_images(pixels, folder)
    return pixels


def config(model: str, folder: Path, *overrides: str) -> Any:
    """Return the config of src/train.py for a model and the images in `folder`."""
    shape = SIZES[model]["shape"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [
            "data=folder", f"data.path={folder / 'images'}", f"data.channels={shape[0]}", f"data.resolution={shape[1]}",
            f"data.cache_folder={folder / 'cache'}", f"model={model}",
            f"model.blocks.dropout={SIZES[model]['dropout']}",
            f"data.batch_size={SIZES[model]['batch_size']}", f"run_folder={folder / 'run'}",
            "trainer.max_steps=1000000", "callbacks.sample_images=null", "callbacks.measure_distance=null",
            "callbacks.save_last=null", "callbacks.restore_on_divergence=null", "callbacks.stop_on_signal=null",
            *overrides,
        ])  # fmt: skip


def ours(model: str, folder: Path, bf16: bool, *overrides: str) -> Loop:
    """Return our training loop, through Lightning's Trainer."""
    from lightning import Callback

    class CallAfterStep(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            if self.has_started:
                self.after_step()
            self.has_started = True

    precision = "bf16-mixed" if bf16 else "32-true"
    run = training_setup.build(config(model, folder, f"trainer.precision={precision}", *overrides))
    callback = CallAfterStep()
    callback.has_started = False
    run.trainer.callbacks.append(callback)

    def fit(after_step: Callable[[], None]) -> None:
        callback.after_step = after_step
        run.trainer.fit(run.module, datamodule=run.datamodule)

    return fit


def bare(model: str, folder: Path, pixels: Tensor, bf16: bool, *overrides: str) -> Loop:
    """Return the same training step as a loop in plain PyTorch, with noise from the global random state."""
    run = training_setup.build(config(model, folder, *overrides))
    network, process, batch_size = run.module.network, run.module.process, SIZES[model]["batch_size"]
    average = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.0, fused=True)
    alpha_bar = process.schedule.alpha_bar.float()

    def loop(after_step: Callable[[], None]) -> None:
        network.train()
        for start in itertools.cycle(range(0, len(pixels) - batch_size + 1, batch_size)):
            x_0 = from_uint8(pixels[start : start + batch_size])
            index = torch.randint(0, len(alpha_bar), (batch_size,))
            noise = torch.randn(x_0.shape)
            level = alpha_bar[index].view(-1, 1, 1, 1)
            x_t = level.sqrt() * x_0 + (1 - level).sqrt() * noise
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = network(x_t, index.float(), Condition())
            loss = (output.float() - noise).square().mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(network.parameters()), 1e-4)
            after_step()

    return loop


def build_loop(name: str, model: str, folder: Path, pixels: Tensor) -> Loop:
    """Return a training loop.

    name: "LIBRARY, PRECISION"; the peers use Adam's fused kernel if the precision is bfloat16.
    """
    library, precision = name.split(", ")
    (channels, side, _), batch_size, dropout = (SIZES[model][key] for key in ("shape", "batch_size", "dropout"))
    bf16 = precision == "bfloat16"
    if library == "ours":
        malloc.keep_freed_memory()  # our commands do the same
        return ours(model, folder, bf16)
    if library == "bare loop":
        return bare(model, folder, pixels, bf16)
    if library == "diffusers":
        network = peers.diffusers_network(model, channels=channels, side=side, dropout=dropout)
        return peers.DiffusersLoop(network, pixels, batch_size=batch_size, bf16=bf16, fused=bf16).run
    network = peers.lucidrains_network(model, channels=channels, dropout=dropout)
    return peers.LucidrainsLoop(
        network, folder / "images", side=side, batch_size=batch_size, bf16=bf16, fused=bf16, results=folder / "results"
    ).run


PREPARE = "prepare"
DEFAULTS, ADDED, BARE = "default settings", "bfloat16 and fused Adam", "the same step in a bare loop"
GROUPS: tuple[tuple[tuple[str, str, str, str], ...], ...] = (
    (
        ("ours, bfloat16", "diffusers, float32", "diffusers' example", DEFAULTS),
        ("ours, bfloat16", "diffusers, bfloat16", "diffusers' example", ADDED),
        ("ours, bfloat16", "bare loop, bfloat16", BARE, ""),
    ),
    (
        ("ours, float32", "diffusers, float32", "diffusers' example", DEFAULTS),
        ("ours, float32", "bare loop, float32", BARE, ""),
    ),
    (
        ("ours, bfloat16", "lucidrains, float32", "denoising-diffusion-pytorch", DEFAULTS),
        ("ours, bfloat16", "lucidrains, bfloat16", "denoising-diffusion-pytorch", ADDED),
    ),
)
"""(our loop, other loop, name of the other, its settings).

All loops of a group are in memory at the same time. More of them would not fit into the memory of a laptop.
"""


def compare(model: str, group: Sequence[tuple[str, str, str, str]], rounds: int) -> list[Row]:
    """Measure the loops of a group in turns."""
    names = sorted({name for pair in group for name in pair[:2]})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--models", model, "--folder", folder, "--loop"]
        subprocess.run([*command, PREPARE], check=True, stdout=subprocess.DEVNULL)
        loops = {name: PausedLoop([*command, name]) for name in names}
        seconds = interleave({name: loop.advance for name, loop in loops.items()}, rounds)
        for loop in loops.values():
            loop.stop()
    batch, found = f"{model}, batch {SIZES[model]['batch_size']}", []
    for our_loop, other_loop, peer, settings in group:
        name, precision = f"{peer}, {settings}".strip(", "), our_loop.split(", ")[1]
        sides = seconds[our_loop], seconds[other_loop]
        found.append(
            Row(f"{batch}: step, ours in {precision}", "s", *sides, name, target(model, our_loop, peer, settings))
        )
        if precision == other_loop.split(", ")[1] and peer != BARE:
            peaks = [loops[our_loop].peak], [loops[other_loop].peak]
            found.append(Row(f"{batch}: peak memory, ours in {precision}", "MB", *peaks, name, 1.0))
    return found


def target(model: str, our_loop: str, peer: str, settings: str) -> float:
    """Return how many times faster than the peer our step must be."""
    if peer == BARE:
        return 0.97
    if (our_loop, peer, settings) == ("ours, bfloat16", "diffusers' example", DEFAULTS):
        return {"unet_cifar10": 1.6, "unet_tiny": 1.4}[model]
    return 1.0


def prepare(model: str, folder: Path) -> None:
    """Write the images that all loops read, and build our cache, which exists in every run after the first."""
    torch.save(write_set(folder / "images", SIZES[model]["shape"]), folder / "pixels.pt")
    training_setup.build(config(model, folder)).datamodule.setup("fit")


def run_loop(model: str, name: str, folder: Path) -> None:
    """Run one loop in this process until the measuring process stops it."""
    build_loop(name, model, folder, torch.load(folder / "pixels.pt"))(pause_after_each_step())


def rows(arguments: argparse.Namespace) -> list[Row]:
    if arguments.loop == PREPARE:
        prepare(arguments.models, Path(arguments.folder))
        return []
    if arguments.loop:
        run_loop(arguments.models, arguments.loop, Path(arguments.folder))
        return []
    models = arguments.models.split(",")
    return [row for model in models for group in GROUPS for row in compare(model, group, arguments.rounds)]


if __name__ == "__main__":
    main(
        __doc__, rows, models=(str, "unet_cifar10,unet_tiny", "comma-separated names of networks"),
        loop=(str, "", argparse.SUPPRESS), folder=(str, "", argparse.SUPPRESS),
    )  # fmt: skip

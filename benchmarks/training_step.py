"""A whole training step: noising, forward, backward, clipping, Adam, average; data and log too.

    python benchmarks/training_step.py

Ours through src/train.py's own objects, Lightning's Trainer and all callbacks that act at each step; a bare loop of the
same mathematics; diffusers' unconditional example and denoising-diffusion-pytorch's Trainer at their defaults, and with
bfloat16 and Adam's fused kernel. Each loop has a process of its own; they stand still between their steps and take
turns.
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
from measuring import ROOT, Paused, Row, in_turns, main, stands_still
from torch import Tensor, nn

from diffusion_lab.commands import malloc
from diffusion_lab.networks import Condition
from diffusion_lab.runs import training_setup

SIZES: dict[str, dict[str, Any]] = {
    "unet_cifar10": {"shape": (3, 32, 32), "batch_size": 16, "dropout": 0.1},
    "unet_tiny": {"shape": (1, 28, 28), "batch_size": 128, "dropout": 0.0},
}


def write_set(folder: Path, shape: tuple[int, int, int], num_images: int = 512) -> Tensor:
    """A set of noise, as files.  Returns uint8 [N, C, H, W]."""
    pixels = torch.randint(0, 256, (num_images, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    peers.write_images(pixels, folder)
    return pixels


def config(model: str, folder: Path, *words: str) -> Any:
    """Of src/train.py for this model on a folder of images."""
    shape = SIZES[model]["shape"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [
            "data=folder", f"data.path={folder / 'images'}", f"data.channels={shape[0]}", f"data.resolution={shape[1]}",
            f"data.cache_folder={folder / 'cache'}", f"model={model}",
            f"model.blocks.dropout={SIZES[model]['dropout']}",
            f"data.batch_size={SIZES[model]['batch_size']}", f"run_folder={folder / 'run'}",
            "trainer.max_steps=1000000", "callbacks.sample_images=null", "callbacks.measure_distance=null",
            "callbacks.save_last=null", "callbacks.restore_on_divergence=null", "callbacks.stop_on_signal=null",
            *words,
        ])  # fmt: skip


def ours(model: str, folder: Path, bf16: bool, *words: str) -> Callable[[Callable[[], None]], None]:
    from lightning import Callback

    class Tell(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            if self.begun:
                self.after_step()
            self.begun = True

    run = training_setup.build(
        config(model, folder, f"trainer.precision={'bf16-mixed' if bf16 else '32-true'}", *words)
    )
    tell = Tell()
    tell.begun = False
    run.trainer.callbacks.append(tell)

    def fit(after_step: Callable[[], None]) -> None:
        tell.after_step = after_step
        run.trainer.fit(run.module, datamodule=run.datamodule)

    return fit


def bare(model: str, folder: Path, pixels: Tensor, bf16: bool, *words: str) -> Callable[[Callable[[], None]], None]:
    """The same step in plain PyTorch, on noise from the global random state."""
    run = training_setup.build(config(model, folder, *words))
    network, process, batch_size = run.module.network, run.module.process, SIZES[model]["batch_size"]
    average = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.0, fused=True)
    alpha_bar = process.schedule.alpha_bar.float()

    def loop(after_step: Callable[[], None]) -> None:
        network.train()
        for start in itertools.cycle(range(0, len(pixels) - batch_size + 1, batch_size)):
            x_0 = pixels[start : start + batch_size].float().div_(127.5).sub_(1)
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


def loop(name: str, model: str, folder: Path, pixels: Tensor) -> Callable[[Callable[[], None]], None]:
    """One of the loops.  name: whose, and in which precision; peers get Adam's fused kernel with bfloat16."""
    who, precision = name.split(", ")
    (channels, side, _), batch_size, dropout = (SIZES[model][key] for key in ("shape", "batch_size", "dropout"))
    bf16 = precision == "bfloat16"
    if who == "ours":
        malloc.keep_freed()  # as the command does
        return ours(model, folder, bf16)
    if who == "bare loop":
        return bare(model, folder, pixels, bf16)
    if who == "diffusers":
        network = peers.diffusers_network(model, channels=channels, side=side, dropout=dropout)
        return peers.DiffusersLoop(network, pixels, batch_size=batch_size, bf16=bf16, fused=bf16).run
    network = peers.lucidrains_network(model, channels=channels, dropout=dropout)
    return peers.LucidrainsLoop(
        network, folder / "images", side=side, batch_size=batch_size, bf16=bf16, fused=bf16, results=folder / "results"
    ).run


PREPARE = "prepare"
DEFAULTS, ADDED = "its defaults", "bfloat16 and fused Adam"
GROUPS: tuple[tuple[tuple[str, str, str, str], ...], ...] = (
    (
        ("ours, bfloat16", "diffusers, float32", "diffusers' example", DEFAULTS),
        ("ours, bfloat16", "diffusers, bfloat16", "diffusers' example", ADDED),
        ("ours, bfloat16", "bare loop, bfloat16", "the same in a bare loop", ""),
    ),
    (
        ("ours, float32", "diffusers, float32", "diffusers' example", DEFAULTS),
        ("ours, float32", "bare loop, float32", "the same in a bare loop", ""),
    ),
    (
        ("ours, bfloat16", "lucidrains, float32", "denoising-diffusion-pytorch", DEFAULTS),
        ("ours, bfloat16", "lucidrains, bfloat16", "denoising-diffusion-pytorch", ADDED),
    ),
)
"""(ours, the other, its name, how): the loops of a group take turns; the memory of a laptop holds no more of them."""


def compared(model: str, group: Sequence[tuple[str, str, str, str]], rounds: int) -> list[Row]:
    names = sorted({name for pair in group for name in pair[:2]})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--models", model, "--folder", folder, "--loop"]
        subprocess.run([*command, PREPARE], check=True, stdout=subprocess.DEVNULL)
        loops = {name: Paused([*command, name]) for name in names}
        seconds = in_turns({name: paused.advance for name, paused in loops.items()}, rounds)
        for paused in loops.values():
            paused.end()
    batch, found = f"{model}, batch {SIZES[model]['batch_size']}", []
    for mine, other, peer, how in group:
        name = f"{peer}, {how}".strip(", ")
        found.append(Row(f"{batch}: {mine}", "s", seconds[mine], seconds[other], name, asked(model, mine, peer, how)))
        if mine.split(", ")[1] == other.split(", ")[1] and peer != "the same in a bare loop":
            peaks = [loops[mine].peak], [loops[other].peak]
            found.append(Row(f"{batch}: most memory of the process, {mine}", "MB", *peaks, name, 1.0))
    return found


def asked(model: str, mine: str, peer: str, how: str) -> float:
    """How many times as fast we want to be."""
    if peer == "the same in a bare loop":
        return 0.97
    if (mine, peer, how) == ("ours, bfloat16", "diffusers' example", DEFAULTS):
        return {"unet_cifar10": 1.6, "unet_tiny": 1.4}[model]
    return 1.0


def prepare(model: str, folder: Path) -> None:
    """The images, as all loops read them; ours from its cache, as in every run after the first."""
    torch.save(write_set(folder / "images", SIZES[model]["shape"]), folder / "pixels.pt")
    training_setup.build(config(model, folder)).datamodule.setup("fit")


def run_alone(model: str, name: str, folder: Path) -> None:
    """One loop, for as long as somebody lets it go on."""
    loop(name, model, folder, torch.load(folder / "pixels.pt"))(stands_still())


def rows(arguments: argparse.Namespace) -> list[Row]:
    if arguments.loop == PREPARE:
        prepare(arguments.models, Path(arguments.folder))
        return []
    if arguments.loop:
        run_alone(arguments.models, arguments.loop, Path(arguments.folder))
        return []
    models = arguments.models.split(",")
    return [row for model in models for group in GROUPS for row in compared(model, group, arguments.rounds)]


if __name__ == "__main__":
    main(
        __doc__, rows, models=(str, "unet_cifar10,unet_tiny", "which networks"), loop=(str, "", argparse.SUPPRESS),
        folder=(str, "", argparse.SUPPRESS),
    )  # fmt: skip

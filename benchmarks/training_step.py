"""A whole training step: noising, forward, backward, clipping, Adam, average; data and log too.

    python benchmarks/training_step.py

Ours through src/train.py's own objects, Lightning's Trainer and all callbacks that act at each step; a bare loop of the
same mathematics; diffusers' unconditional example and denoising-diffusion-pytorch's Trainer at their defaults, and with
bfloat16 and Adam's fused kernel. All loops stand still between their steps and take turns.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import torch
from hydra import compose, initialize_config_dir
from measuring import ROOT, Paused, Row, in_turns, main
from torch import Tensor, nn

from diffusion_lab import run_building
from diffusion_lab.networks import Condition

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


def ours(model: str, folder: Path, bf16: bool) -> Callable[[Callable[[], None]], None]:
    from lightning import Callback

    class Tell(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            if self.begun:
                self.after_step()
            self.begun = True

    run = run_building.build(config(model, folder, f"trainer.precision={'bf16-mixed' if bf16 else '32-true'}"))
    tell = Tell()
    tell.begun = False
    run.trainer.callbacks.append(tell)

    def fit(after_step: Callable[[], None]) -> None:
        tell.after_step = after_step
        run.trainer.fit(run.module, datamodule=run.datamodule)

    return fit


def bare(model: str, folder: Path, pixels: Tensor, bf16: bool) -> Callable[[Callable[[], None]], None]:
    """The same step in plain PyTorch, on noise from the global random state."""
    run = run_building.build(config(model, folder))
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


def loops(model: str, folder: Path) -> dict[str, Callable[[], float]]:
    shape, batch_size, dropout = (SIZES[model][key] for key in ("shape", "batch_size", "dropout"))
    pixels = write_set(folder / "images", shape)
    found: dict[str, Callable[[Callable[[], None]], None]] = {}
    for bf16 in (False, True):
        name = "bfloat16" if bf16 else "float32"
        found[f"ours, {name}"] = ours(model, folder, bf16)
        found[f"bare loop, {name}"] = bare(model, folder, pixels, bf16)
        network = peers.diffusers_network(model, channels=shape[0], side=shape[1], dropout=dropout)
        found[f"diffusers, {name}"] = peers.DiffusersLoop(
            network, pixels, batch_size=batch_size, bf16=bf16, fused=bf16
        ).run
        network = peers.lucidrains_network(model, channels=shape[0], dropout=dropout)
        found[f"lucidrains, {name}"] = peers.LucidrainsLoop(
            network, folder / "images", side=shape[1], batch_size=batch_size, bf16=bf16, fused=bf16,
            results=folder / "results",
        ).run  # fmt: skip
    return {name: Paused(run).advance for name, run in found.items()}


def compared(model: str, seconds: dict[str, list[float]]) -> list[Row]:
    batch = f"{model}, batch {SIZES[model]['batch_size']}"
    diffusers, lucidrains = "diffusers' example", "denoising-diffusion-pytorch"
    of_default, of_bare = {"unet_cifar10": (1.6, 0.97), "unet_tiny": (1.4, 0.97)}[model]
    pairs = (
        ("ours, bfloat16", "diffusers, float32", f"{diffusers}, its defaults", of_default),
        ("ours, bfloat16", "diffusers, bfloat16", f"{diffusers}, bfloat16 and fused Adam", 1.0),
        ("ours, bfloat16", "lucidrains, float32", f"{lucidrains}, its defaults", 1.0),
        ("ours, bfloat16", "lucidrains, bfloat16", f"{lucidrains}, bfloat16 and fused Adam", 1.0),
        ("ours, float32", "diffusers, float32", f"{diffusers}, its defaults", 1.0),
        ("ours, float32", "lucidrains, float32", f"{lucidrains}, its defaults", 1.0),
        ("ours, float32", "bare loop, float32", "the same in a bare loop", of_bare),
        ("ours, bfloat16", "bare loop, bfloat16", "the same in a bare loop", of_bare),
    )
    return [
        Row(f"{batch}: {mine}", "s", seconds[mine], seconds[other], name, asked) for mine, other, name, asked in pairs
    ]


def rows(arguments: argparse.Namespace) -> list[Row]:
    found = []
    for model in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found += compared(model, in_turns(loops(model, Path(folder)), arguments.rounds))
    return found


if __name__ == "__main__":
    main(__doc__, rows, models=(str, "unet_cifar10,unet_tiny", "which networks"))

"""Writing and reading what a run of unet_cifar10 needs to go on: weights, average, Adam's moments; 430 MB.

    python benchmarks/checkpoints.py

Beside Lightning's own way to files, which is torch.save and torch.load. Ours also waits until the file is on the disk,
so that a power cut leaves it whole, and compares every record's checksum before it believes a file.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from measuring import Row, in_turns, main, timed
from network import ours

from diffusion_lab import checkpoint_files
from diffusion_lab.ema.averages import EMA, ConstantDecay
from diffusion_lab.training.optimizers import Adam


def rows(arguments: argparse.Namespace) -> list[Row]:
    network = ours("unet_cifar10")
    ema, (optimizer, _) = EMA(network, {"ema": ConstantDecay()}), Adam()(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = {"network": network.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    theirs = TorchCheckpointIO()
    with tempfile.TemporaryDirectory() as folder:
        mine, other = Path(folder) / "mine.ckpt", Path(folder) / "other.ckpt"
        jobs = {
            "write": lambda: timed(lambda: checkpoint_files.write(state, mine)),
            "their write": lambda: timed(lambda: theirs.save_checkpoint(state, other)),
            "read": lambda: timed(lambda: checkpoint_files.read(mine)),
            "their read": lambda: timed(lambda: theirs.load_checkpoint(other, weights_only=True)),
        }
        seconds = in_turns(jobs, arguments.rounds)
        size = mine.stat().st_size / 2**20
    name = "Lightning's torch.save and torch.load"
    return [
        Row(f"writing a checkpoint of {size:.0f} MB", "s", seconds["write"], seconds["their write"], name, 1.0,
            note="ours waits until it is on the disk"),
        Row(f"reading a checkpoint of {size:.0f} MB", "s", seconds["read"], seconds["their read"], name, 1.0,
            note="ours compares all checksums"),
    ]  # fmt: skip


if __name__ == "__main__":
    main(__doc__, rows)

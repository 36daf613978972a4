"""Writing and reading the checkpoint of a unet_cifar10 run: weights, EMA weights and Adam's moments.

    python benchmarks/checkpoints.py

Compared with Lightning's TorchCheckpointIO, which calls torch.save and torch.load. Ours also waits until the file is on
disk, so that a power failure cannot damage it, and verifies the checksum of every record when it reads a file.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from measuring import Row, interleave, main, timed
from network import ours

from diffusion_lab import checkpoint_files
from diffusion_lab.ema import EMA, ConstantDecay


def rows(arguments: argparse.Namespace) -> list[Row]:
    network = ours("unet_cifar10")
    ema, optimizer = EMA(network, {"ema": ConstantDecay()}), torch.optim.Adam(network.parameters(), lr=2e-4, fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = {"network": network.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    lightning_io = TorchCheckpointIO()
    with tempfile.TemporaryDirectory() as folder:
        our_file, peer_file = Path(folder) / "ours.ckpt", Path(folder) / "peer.ckpt"
        jobs = {
            "our write": lambda: timed(lambda: checkpoint_files.write(state, our_file)),
            "peer's write": lambda: timed(lambda: lightning_io.save_checkpoint(state, peer_file)),
            "our read": lambda: timed(lambda: checkpoint_files.read(our_file)),
            "peer's read": lambda: timed(lambda: lightning_io.load_checkpoint(peer_file, weights_only=True)),
        }
        seconds = interleave(jobs, arguments.rounds)
        size = our_file.stat().st_size / 2**20
    name = "Lightning's torch.save and torch.load"
    return [
        Row(f"writing a checkpoint of {size:.0f} MB", "s", seconds["our write"], seconds["peer's write"], name, 1.0,
            note="ours waits until the file is on disk"),
        Row(f"reading a checkpoint of {size:.0f} MB", "s", seconds["our read"], seconds["peer's read"], name, 1.0,
            note="ours verifies all checksums"),
    ]  # fmt: skip


if __name__ == "__main__":
    main(__doc__, rows)

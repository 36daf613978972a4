"""Seconds of whole commands, from the shell: help, and until a first training step of unet_tiny is done.

    python benchmarks/startup.py

Ours is src/train.py itself, with its summary and a checkpoint at the end; the peers import themselves, build the
same network, and do one step of 64 images of noise by the loops in peers.py.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import ROOT, Row, in_turns, main, timed

PEER = """
import sys; sys.path.insert(0, {here!r})
import torch, peers
from pathlib import Path
pixels = torch.randint(0, 256, (128, 1, 28, 28), dtype=torch.uint8)
def stop():
    raise peers.Stopped
if {library!r} == 'diffusers':
    loop = peers.DiffusersLoop(peers.diffusers_network('unet_tiny'), pixels, batch_size=64)
else:
    images = peers.write_images(pixels, Path({folder!r}) / 'images')
    network = peers.lucidrains_network('unet_tiny')
    loop = peers.LucidrainsLoop(network, images, side=28, batch_size=64, results=Path({folder!r}) / 'results')
loop.run(stop)
"""


def command(*words: str) -> float:
    return timed(lambda: subprocess.run([sys.executable, "-W", "ignore", *words], check=True, capture_output=True))


def rows(arguments: argparse.Namespace) -> list[Row]:
    train = str(ROOT / "src" / "train.py")
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> float:
            run = tempfile.mkdtemp(dir=folder)
            path, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", ""), ""  # as a user has it
            try:
                return command(train, "model=unet_tiny", "trainer.max_steps=1", f"hydra.run.dir={run}/run",
                               "callbacks.measure_distance=null", "callbacks.sample_images=null")  # fmt: skip
            finally:
                os.environ["PYTHONPATH"] = path

        def peer(library: str) -> float:
            words = {"here": str(Path(__file__).parent), "library": library, "folder": folder}
            return command("-c", PEER.format(**words))

        jobs = {
            "help": lambda: command(train, "--help"),
            "ours": ours,
            "diffusers": lambda: peer("diffusers"),
            "lucidrains": lambda: peer("lucidrains"),
        }
        seconds = in_turns(jobs, min(arguments.rounds, 3))
    step = "until a first step of unet_tiny is done"
    return [
        Row("src/train.py --help", "s", seconds["help"], [1.5], "what we ask for", 1.0),
        Row(step, "s", seconds["ours"], [12.0], "what we ask for", 1.0),
        Row(step, "s", seconds["ours"], seconds["diffusers"], "diffusers, a loop like its example", 1.0),
        Row(step, "s", seconds["ours"], seconds["lucidrains"], "denoising-diffusion-pytorch, its Trainer", 1.0),
    ]


if __name__ == "__main__":
    main(__doc__, rows)

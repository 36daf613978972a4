"""The duration of complete commands: --help, and a training run of unet_tiny that ends after its first step.

    python benchmarks/startup.py

Ours is src/train.py, which also prints its summary and writes a checkpoint at the end. The peers import their library,
build the same network and run one step with 64 images of noise by the loops in peers.py.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import ROOT, Row, interleave, main, timed

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


def command_seconds(*arguments: str) -> float:
    """Run Python with these arguments and return the duration in seconds."""
    return timed(lambda: subprocess.run([sys.executable, "-W", "ignore", *arguments], check=True, capture_output=True))


def rows(arguments: argparse.Namespace) -> list[Row]:
    train = str(ROOT / "src" / "train.py")
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> float:
            run = tempfile.mkdtemp(dir=folder)
            path, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", ""), ""  # a user's environment has none
            try:
                return command_seconds(
                    train, "model=unet_tiny", "trainer.max_steps=1", f"hydra.run.dir={run}/run",
                    "callbacks.measure_distance=null", "callbacks.sample_images=null",
                )  # fmt: skip
            finally:
                os.environ["PYTHONPATH"] = path

        def peer(library: str) -> float:
            values = {"here": str(Path(__file__).parent), "library": library, "folder": folder}
            return command_seconds("-c", PEER.format(**values))

        jobs = {
            "help": lambda: command_seconds(train, "--help"),
            "ours": ours,
            "diffusers": lambda: peer("diffusers"),
            "lucidrains": lambda: peer("lucidrains"),
        }
        seconds = interleave(jobs, min(arguments.rounds, 3))
    step = "train unet_tiny for one step"
    return [
        Row("src/train.py --help", "s", seconds["help"], [1.5], "our target", 1.0),
        Row(step, "s", seconds["ours"], [12.0], "our target", 1.0),
        Row(step, "s", seconds["ours"], seconds["diffusers"], "diffusers, loop of its example", 1.0),
        Row(step, "s", seconds["ours"], seconds["lucidrains"], "denoising-diffusion-pytorch's Trainer", 1.0),
    ]


if __name__ == "__main__":
    main(__doc__, rows)

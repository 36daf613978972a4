"""Compare posterior samplers, a network that was trained for inpainting, and biharmonic filling, on middle halves.

    python src/train.py experiment=quickstart hydra.run.dir=logs/train/plain
    python src/train.py experiment=quickstart masking=random_rectangles masking.max_rectangles=1 masking.min_side=0.4 \
        masking.max_side=1.0 hydra.run.dir=logs/train/masked
    pip install scikit-image
    python benchmarks/inpainting.py logs/train/plain logs/train/masked logs/inpainting

The last argument is a new folder for the results, or one with results of an earlier call, which are not repeated. The
table is printed, with the seconds that sampling took for each result. All methods fill the same 200 held-out images,
whose classes they do not receive.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion_lab.metrics import PSNR, SSIM

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 200
COMMON = (
    *("task=inpaint", "mask=half", "metrics=[psnr,ssim]"),
    *("sampler=ddim", "sampler.num_steps=50", "batch_size=100", "num_pictures=16"),
)
METHODS: dict[str, tuple[int, tuple[str, ...]]] = {
    "network": (8, ()),
    "ddrm": (8, ()),
    "ddnm": (8, ("sampler.eta=1",)),
    "replace": (8, ("sampler.eta=1",)),
    "repaint": (1, ("sampler.eta=1", "posterior.num_resamples=5")),
    "pigdm": (8, ()),
    "mmps": (1, ()),
    "dps": (1, ("sampler.eta=1", "posterior.step_size=10")),
}
"""Choice of `posterior` -> number of results of each image, and other settings."""


def run_edit(run: Path, folder: Path, *settings: str) -> None:
    """Execute an edit whose results are in a folder, unless they exist."""
    if not (folder / "metrics.json").is_file():
        command = [sys.executable, str(ROOT / "src" / "edit.py"), f"run={run}", *settings, f"hydra.run.dir={folder}"]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})


def edit(run: Path, posterior: str, sources: Path, folder: Path) -> dict[str, float]:
    """Return the metric values of an edit by their names, and its duration.  sources: folder of images."""
    count, settings = METHODS[posterior]
    run_edit(run, folder, f"images={sources}", *COMMON, f"posterior={posterior}", f"num_results={count}", *settings)
    record = json.loads((folder / "metrics.json").read_text())
    values = {number["name"].rpartition("_sources")[0]: number["value"] for number in record["numbers"]}
    return values | {"seconds": record["seconds"]["sampling"] / (NUM_IMAGES * count)}


def biharmonic(sources: Path) -> dict[str, float]:
    """Return the metric values of biharmonic filling of the middle half of the images in a folder."""
    from skimage.restoration import inpaint_biharmonic

    started, rows = time.perf_counter(), []
    for path in sorted(sources.glob("*.png"))[:NUM_IMAGES]:
        image = np.asarray(Image.open(path).convert("L"))
        hole = np.zeros(image.shape, dtype=bool)
        hole[:, image.shape[1] // 4 : image.shape[1] * 3 // 4] = True
        filled = inpaint_biharmonic(image / 255, hole)
        filled = np.where(hole, np.rint(np.clip(filled, 0, 1) * 255), image).astype(np.uint8)
        pair = [torch.from_numpy(pixels.copy())[None, None] for pixels in (filled, image)]
        rows.append([metric.for_images((1, *image.shape)).measure(*pair, None) for metric in (PSNR(), SSIM())])
    psnr, ssim = np.mean(rows, axis=0)
    return {"psnr": float(psnr), "ssim": float(ssim), "seconds": (time.perf_counter() - started) / len(rows)}


def line(name: str, values: Mapping[str, float]) -> str:
    """Return a row of the table."""
    keys = ("psnr", "ssim", "psnr_of_mean", "ssim_of_mean", "seconds")
    return f"| {name} | " + " | ".join(f"{values[key]:.3g}" if key in values else "" for key in keys) + " |"


def main(plain: Path, masked: Path, output: Path) -> None:
    plain, masked, output = plain.absolute(), masked.absolute(), output.absolute()
    held_out = ("images=held_out", f"num_images={NUM_IMAGES}", "mask=half", "posterior=replace", "sampler.num_steps=1")
    run_edit(plain, output / "held_out", *held_out)  # files have no classes
    sources = output / "held_out" / "sources"
    print("| method | PSNR | SSIM | PSNR, mean of 8 | SSIM, mean of 8 | seconds |\n|---|---|---|---|---|---|")
    for posterior in METHODS:
        run = masked if posterior == "network" else plain
        print(line(f"`{posterior}`", edit(run, posterior, sources, output / posterior)), flush=True)
    print(line("biharmonic", biharmonic(sources)), flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))

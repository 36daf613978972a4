"""Restore test images of CIFAR-10 with a network that was trained on a CPU, and draw docs/editing_color.webp.

    python src/train.py experiment=quickstart data=cifar10 model=unet_quick data.batch_size=64 optimizer.lr=0.003 \
        trainer.max_steps=3500 features=efficientnet callbacks.measure_distance=null hydra.run.dir=logs/train/color
    python benchmarks/color_edits.py logs/train/color logs/color_edits

The last argument is a new folder for the results, or one with results of an earlier call, which are not repeated. The
first eight test images are used. Prints the PSNR and the SSIM of each task.
"""

import json
import sys
from pathlib import Path

import numpy as np
from inpainting import run_edit
from matplotlib import pyplot
from PIL import Image

NUM_IMAGES, NUM_RESULTS = 8, 4
COMMON = (
    *("images=test", f"num_images={NUM_IMAGES}", f"num_results={NUM_RESULTS}", "sampler.num_steps=50"),
    *("guidance_scale=1", "batch_size=32", "metrics=[psnr,ssim]"),
)
TASKS = {
    "mask=half": ("mask=half",),
    "task=colorize": ("task=colorize",),
    "task=super_resolution, factor 4": ("task=super_resolution", "task.factor=4"),
    "task=deblur, noise 0.05": ("task=deblur", "task.std=1.5", "task.noise=0.05"),
}


def row(folder: Path, first: int = 0, step: int = 1) -> np.ndarray:
    """Return every `step`-th of the images of a folder from `first` on, side by side: [H, 8 W, 3]."""
    files = sorted(folder.glob("*.png"))[first : first + NUM_IMAGES * step : step]
    return np.concatenate([np.asarray(Image.open(file).convert("RGB").resize((32, 32), 0)) for file in files], axis=1)


def main() -> None:
    run, folder = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    figure, all_axes = pyplot.subplots(2, 2, figsize=(11.5, 6.2), layout="constrained")
    for number, (title, settings) in enumerate(TASKS.items()):
        place = folder / str(number)
        run_edit(run, place, *settings, *COMMON)
        values = [f"{value['value']:.3g}" for value in json.loads((place / "metrics.json").read_text())["numbers"]]
        print(f"| {title} | " + " | ".join(values) + " |")
        rows = {"source": row(place / "sources"), "measured": row(place / "measurements")}
        rows |= {f"result {k + 1}": row(place / "images", k, NUM_RESULTS) for k in range(2)}
        axes = all_axes.flat[number]
        axes.imshow(np.concatenate([*rows.values()]))
        axes.set_yticks([32 * (k + 0.5) for k in range(len(rows))], [*rows], fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=9)
    figure.savefig(Path(__file__).parents[1] / "docs" / "editing_color.webp", dpi=90, pil_kwargs={"quality": 90})


if __name__ == "__main__":
    main()

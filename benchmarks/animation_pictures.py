"""Generate the sequences of frames of docs/animations.md with a run of the quick start, and draw their figures.

    python src/train.py experiment=quickstart hydra.run.dir=logs/train/plain
    python benchmarks/animation_pictures.py logs/train/plain logs/animations

The last argument is a new folder for the results, or one with results of an earlier call, which are not repeated. The
first two boots and the first bag of the held-out images are used. Prints the table of the distances between frames.
"""

import json
import sys
from pathlib import Path

import numpy as np
from inpainting import run_edit
from PIL import Image

from diffusion_lab.runs.load import instantiate_node, load_config

DOCS = Path(__file__).parents[1] / "docs"
BOOT, BAG = 9, 8
COMMON = ("sampler.num_steps=50", "batch_size=32")


def write_ends(run: Path, folder: Path) -> None:
    """Write the first two boots, and the first boot and the first bag, to the folders boots and bag."""
    images = instantiate_node(load_config(run).data.store, "data").load("held_out")
    pixels, label = images.gather(np.arange(len(images))).numpy(), images.label.numpy()
    boots, bags = pixels[label == BOOT], pixels[label == BAG]
    for name, ends in {"boots": boots[:2], "bag": [boots[0], bags[0]]}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, end in enumerate(ends):
            Image.fromarray(end[0]).save(folder / name / f"{number}.png")


def frames(folder: Path) -> list[np.ndarray]:
    """Return the frames of a sequence, [H, W] each."""
    return [np.asarray(Image.open(file).convert("L")) for file in sorted((folder / "images").glob("*.png"))]


def enlarged(image: np.ndarray) -> Image.Image:
    """Return a picture with twice the height and width of an image."""
    return Image.fromarray(np.repeat(np.repeat(image, 2, axis=0), 2, axis=1))


def main() -> None:
    run, folder = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    write_ends(run, folder)
    eight, change = ("task.num_frames=8", *COMMON), f"label=[{BOOT},{BAG}]"
    sequences = {
        "interpolation between two boots": ("task=interpolate", f"images={folder / 'boots'}", f"label={BOOT}", *eight),
        "interpolation from boot to bag": ("task=interpolate", f"images={folder / 'bag'}", change, *eight),
        "morph from boot to bag": ("task=morph", change, *eight),
        "guidance scales 0 to 7": ("task=sweep", "label=sneaker", "task.guidance_scales=[0,7]", *eight),
        "walk, boots": ("task=walk", f"label={BOOT}", *COMMON),
        "walk, 8 classes": ("task=walk", *COMMON),
    }  # fmt: skip
    rows, walks = [], []
    print("| sequence | frames | mean distance | largest / mean |\n| --- | --- | --- | --- |")
    for name, settings in sequences.items():
        place = folder / name.replace(" ", "_").replace(",", "")
        run_edit(run, place, *settings)
        mean, ratio = (number["value"] for number in json.loads((place / "metrics.json").read_text())["numbers"])
        found = frames(place)
        print(f"| {name} | {len(found)} | {mean:.2f} | {ratio:.2f} |", flush=True)
        (walks if name.startswith("walk") else rows).append(found)
    enlarged(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(DOCS / "animations.png")
    both = [enlarged(np.concatenate(pair, axis=1)) for pair in zip(*walks, strict=True)]
    both[0].save(DOCS / "walk.webp", save_all=True, append_images=both[1:], duration=83, loop=0, lossless=True)


if __name__ == "__main__":
    main()

"""Edit held-out images with a run of the quick start, and draw docs/editing.png.

    python src/train.py experiment=quickstart hydra.run.dir=logs/train/plain
    python benchmarks/edit_pictures.py logs/train/plain logs/editing

The last argument is a new folder for the results, or one with results of an earlier call, which are not repeated. The
first images are used, so that no edit is selected by its result; the shirts were selected because they have prints.
"""

import sys
from pathlib import Path

import numpy as np
from inpainting import run_edit
from matplotlib import pyplot
from PIL import Image

from diffusion_lab.runs.load import instantiate_node, load_config

COMMON = ("num_results=4", "sampler.num_steps=50", "guidance_scale=1", "clipping=static", "metrics=[psnr]")
STRENGTHS = (0.3, 0.6, 0.9)
SHIRTS = (9, 39, 84, 85)
"""Numbers of held-out images with a print, which is in PRINT."""
PRINT = (slice(3, 20), slice(7, 21))


def write_shirts(run: Path, folder: Path) -> None:
    """Write the shirts, and a mask of their prints, to a folder."""
    (folder / "shirts").mkdir(parents=True, exist_ok=True)
    pixels = instantiate_node(load_config(run).data.store, "data").load("held_out").gather(np.array(SHIRTS))
    for number, shirt in zip(SHIRTS, pixels.numpy(), strict=True):
        Image.fromarray(shirt[0]).save(folder / "shirts" / f"{number}.png")
    mask = np.zeros(pixels.shape[2:], dtype=np.uint8)
    mask[PRINT] = 255
    Image.fromarray(mask).save(folder / "mask.png")


def row(folder: Path, first: int = 0, step: int = 1) -> np.ndarray:
    """Return every `step`-th of the images of a folder from `first` on, side by side: [H, 4 W]."""
    files = sorted(folder.glob("*.png"))[first : first + 4 * step : step]
    return np.concatenate([np.asarray(Image.open(file).convert("L")) for file in files], axis=1)


def restored(folder: Path) -> dict[str, np.ndarray]:
    """Return the rows of a restoration of four images by their labels."""
    rows = {"source": row(folder / "sources"), "measured": row(folder / "measurements")}
    return rows | {f"result {k + 1}": row(folder / "images", k, 4) for k in range(4)}


def main() -> None:
    run, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    write_shirts(run, folder)
    held_out = ("images=held_out", "num_images=4")
    panels: dict[str, dict[str, np.ndarray]] = {}
    for posterior in ("ddrm", "pigdm"):
        run_edit(run, folder / posterior, *held_out, "mask=half", f"posterior={posterior}", *COMMON)
        panels[f"mask=half posterior={posterior}"] = restored(folder / posterior)
    shirts = (f"images={folder / 'shirts'}", "mask=file", f"mask.path={folder / 'mask.png'}")
    run_edit(run, folder / "removal", *shirts, *COMMON)
    panels["removal of a print, mask=file"] = restored(folder / "removal")
    variations = {"source": row(folder / "ddrm" / "sources")}
    for strength in STRENGTHS:
        of_strength = folder / f"variation_{strength}"
        run_edit(run, of_strength, *held_out, "task=variation", f"task.strength={strength}", *COMMON)
        variations |= {f"{strength}, {k + 1}": row(of_strength / "images", k, 4) for k in range(2)}
    panels["task=variation, by strength"] = variations
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(11.5, 4.4), layout="constrained")
    for axes, (title, rows) in zip(all_axes, panels.items(), strict=True):
        axes.imshow(np.concatenate([*rows.values()]), cmap="gray", vmin=0, vmax=255)
        height = len(next(iter(rows.values())))
        axes.set_yticks([height * (k + 0.5) for k in range(len(rows))], [*rows], fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.set_anchor("N")
        axes.set_title(title, fontsize=9)
    figure.savefig(Path(__file__).parents[1] / "docs" / "editing.png", dpi=100)


if __name__ == "__main__":
    main()

"""The samples that are nearest to training images: a sheet of the pairs, and a table of their distances."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.evaluation.evaluator import Evaluator
from diffusion_lab.reporting.csv_files import write_csv
from diffusion_lab.reporting.image_grids import save_picture
from diffusion_lab.reporting.pair_sheets import pair_sheet
from diffusion_lab.reporting.text import terminal_text

SHEET, TABLE = "nearest_pairs.png", "nearest_pairs.csv"


def write_near_pairs(evaluation: Evaluator, folder: Path) -> None:
    """Write the pairs that a metric has found to a folder, on rank 0; nothing if there are none.

    A caption has the distance as a multiple of the threshold of the metric, the seed (or number) of the sample, and the
    number of the training image in its split.
    """
    pairs = evaluation.near_pairs
    if not pairs or Ranks.current().rank:
        return
    assert evaluation.training is not None
    numbers = evaluation.training.numbers([pair.training for pair in pairs])
    training = evaluation.training.pixels(numbers)
    cells, rows = [], []
    for pair, number, image in zip(pairs, numbers.tolist(), training, strict=True):
        seed = evaluation.seed + pair.sample
        sample = evaluation.images.pixels(range(seed, seed + 1))[0].cpu()
        ratio = pair.distance / pair.threshold if pair.threshold else 0.0
        cells.append((torch.stack([sample, _sized(image, sample)]), (f"{ratio:.2f} x threshold", f"{seed} | {number}")))
        rows.append((seed, number, pair.distance, pair.threshold))
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(pair_sheet(cells), folder / SHEET)
    write_csv(folder / TABLE, ("sample", "training_image", "distance", "threshold"), rows)
    print(f"the samples nearest to training images, each left of its image, are in {terminal_text(folder / SHEET)}")


def _sized(image: Tensor, like: Tensor) -> Tensor:
    """Return an image in the size of another one, which samples with preparation.resolution may have."""
    return image if image.shape == like.shape else F.interpolate(image[None], like.shape[-2:])[0]

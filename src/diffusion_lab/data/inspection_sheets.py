"""Contact sheets of an image set and of its duplicates."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.data.inspection import class_name
from diffusion_lab.data.inspection_report import FoundPair
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import permutation
from diffusion_lab.reporting.image_grids import grid
from diffusion_lab.reporting.pair_sheets import add_text, pair_sheet
from diffusion_lab.reporting.text import terminal_text

MAX_COLUMNS = 20
"""Largest number of classes on a contact sheet."""


def contact_sheet(images: Images, num_rows: int, seed: int) -> np.ndarray:
    """Draw random images, with a column for each class if there are classes.  Returns uint8 [height, width, 3]."""
    order = permutation(seed, epoch=0, size=len(images))
    labels = np.unique(images.label.numpy()).tolist()[:MAX_COLUMNS]
    if not images.class_names and len(labels) < 2:
        return grid(_tiles(images, order[: 10 * num_rows].tolist()), num_columns=10)
    label = images.label.numpy()[order]
    columns = [order[label == one][:num_rows].tolist() for one in labels]
    tiles = _tiles(images, [number for column in columns for number in column])
    black = torch.full_like(tiles[:1], -1)
    padded = [
        torch.cat([part, *[black] * (num_rows - len(part))]) for part in torch.split(tiles, [len(c) for c in columns])
    ]
    sheet = grid(torch.stack(padded, dim=1).flatten(0, 1), num_columns=len(columns))
    width = (sheet.shape[1] - 2) // len(columns)
    return add_text(
        sheet, [(2 + k * width, terminal_text(class_name(images, one), 100)) for k, one in enumerate(labels)], width
    )


def duplicate_sheet(pairs: Sequence[FoundPair], num_pairs: int, num_columns: int = 6) -> np.ndarray:
    """Draw pairs of images, each pair below a caption with its kind, ratio and image indices.

    pairs: one or more pairs. If there are more than num_pairs, num_pairs of them are drawn, evenly spaced in the order
        of the ratios.
    Returns uint8 [height, width, 3].
    """
    ordered = sorted(pairs, key=lambda found: found.pair.ratio)
    chosen = [ordered[int(k)] for k in np.linspace(0, len(ordered) - 1, min(num_pairs, len(ordered)))]
    return pair_sheet([_pair(found) for found in chosen], num_columns)


def _tiles(images: Images, numbers: Sequence[int]) -> Tensor:
    """Return the images with the indices `numbers`: float32 [B, C, H, W] in [-1, 1]."""
    return from_uint8(images.gather(torch.tensor(numbers)))


def _pair(found: FoundPair) -> tuple[Tensor, tuple[str, str]]:
    """Return the two images of a pair, and its captions: its kind, and the indices of the images."""
    pair = found.pair
    both = torch.cat([_tiles(found.first.images, [pair.first]), _tiles(found.second.images, [pair.second])])
    kind = "same bytes" if pair.kind == "same_bytes" else f"{pair.kind} {pair.ratio:.2f}"
    other_split = "" if found.first.name == found.second.name else f" {found.second.name}"
    return both, (kind, f"{pair.first} |{other_split} {pair.second}")

"""Sheets of pictures: what a set looks like, and its duplicates side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.data.inspection import class_name
from diffusion_lab.data.inspection_report import Found
from diffusion_lab.randomness import permutation
from diffusion_lab.reporting.image_grids import grid

TEXT = 16
"""Pixels of a line of text."""
MAX_COLUMNS = 20
"""Classes on a contact sheet, the first ones."""


def contact_sheet(images: Images, num_rows: int, seed: int) -> np.ndarray:
    """Images drawn by chance that `seed` fixes: classes as columns where there are any.  Returns [height, width, 3]."""
    order = permutation(seed, epoch=0, size=len(images))
    labels = np.unique(images.label.numpy()).tolist()[:MAX_COLUMNS]
    if not images.class_names and len(labels) < 2:
        return grid(_shown(images, order[: 10 * num_rows].tolist()), num_columns=10)
    label = images.label.numpy()[order]
    columns = [order[label == one][:num_rows].tolist() for one in labels]
    tiles = _shown(images, [number for column in columns for number in column])
    black = torch.full_like(tiles[:1], -1)
    padded = [
        torch.cat([part, *[black] * (num_rows - len(part))]) for part in torch.split(tiles, [len(c) for c in columns])
    ]
    picture = grid(torch.stack(padded, dim=1).flatten(0, 1), num_columns=len(columns))
    width = (picture.shape[1] - 2) // len(columns)
    return _with_text(picture, [(2 + k * width, class_name(images, one)) for k, one in enumerate(labels)], width)


def duplicate_sheet(found: Sequence[Found], num_pairs: int, num_columns: int = 6) -> np.ndarray:
    """Pairs side by side, each under its kind, ratio and numbers: evenly chosen from the nearest to the least near.

    Returns [height, width, 3].  found: at least one.
    """
    ordered = sorted(found, key=lambda one: one.pair.ratio)
    chosen = [ordered[int(k)] for k in np.linspace(0, len(ordered) - 1, min(num_pairs, len(ordered)))]
    cells = [_cell(one) for one in chosen]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % num_columns)
    rows = [np.concatenate(cells[k : k + num_columns], axis=1) for k in range(0, len(cells), num_columns)]
    return np.concatenate(rows)


def _shown(images: Images, numbers: Sequence[int]) -> Tensor:
    """Images as pictures take them: float [B, C, H, W] in [-1, 1]."""
    return images.gather(torch.tensor(numbers)).float() / 127.5 - 1


def _cell(found: Found) -> np.ndarray:
    pair = found.pair
    both = torch.cat([_shown(found.first.images, [pair.first]), _shown(found.second.images, [pair.second])])
    picture = grid(both, num_columns=2)
    kind = "same bytes" if pair.kind == "same_bytes" else f"{pair.kind} {pair.ratio:.2f}"
    between = "" if found.first.name == found.second.name else f" {found.second.name}"
    lines = [(2, f"{pair.first} |{between} {pair.second}")]
    return _with_text(_with_text(picture, lines, picture.shape[1]), [(2, kind)], picture.shape[1])


def _with_text(picture: np.ndarray, texts: Sequence[tuple[int, str]], width: int) -> np.ndarray:
    """A picture under one line of texts, each at its left edge, cut off at `width` pixels."""
    canvas = Image.new("RGB", (picture.shape[1], TEXT))
    font = ImageFont.load_default(TEXT - 5)
    for left, text in texts:
        label = Image.new("RGB", (width - 2, TEXT))
        ImageDraw.Draw(label).text((0, 0), text, fill=(255, 255, 255), font=font)
        canvas.paste(label, (left, 0))
    return np.concatenate([np.asarray(canvas), picture])

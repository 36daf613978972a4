"""Contact sheets of an image set and of its duplicates."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_lab.data.images import Images
from diffusion_lab.data.inspection import class_name
from diffusion_lab.data.inspection_report import FoundPair
from diffusion_lab.pixels import from_uint8
from diffusion_lab.randomness import permutation
from diffusion_lab.reporting.image_grids import grid
from diffusion_lab.reporting.text import terminal_text

LINE_HEIGHT = 16
"""Height of a line of text in pixels."""
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
    return _add_text(
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
    cells = [_cell(found) for found in chosen]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % num_columns)
    rows = [np.concatenate(cells[k : k + num_columns], axis=1) for k in range(0, len(cells), num_columns)]
    return np.concatenate(rows)


def _tiles(images: Images, numbers: Sequence[int]) -> Tensor:
    """Return the images with the indices `numbers`: float32 [B, C, H, W] in [-1, 1]."""
    return from_uint8(images.gather(torch.tensor(numbers)))


def _cell(found: FoundPair) -> np.ndarray:
    pair = found.pair
    both = torch.cat([_tiles(found.first.images, [pair.first]), _tiles(found.second.images, [pair.second])])
    picture = grid(both, num_columns=2)
    kind = "same bytes" if pair.kind == "same_bytes" else f"{pair.kind} {pair.ratio:.2f}"
    other_split = "" if found.first.name == found.second.name else f" {found.second.name}"
    numbers = f"{pair.first} |{other_split} {pair.second}"
    width = picture.shape[1]
    return _add_text(_add_text(picture, [(2, numbers)], width), [(2, kind)], width)


def _add_text(picture: np.ndarray, texts: Sequence[tuple[int, str]], width: int) -> np.ndarray:
    """Add text above an image.  texts: left edge and text of each label, wrapped after `width` pixels."""
    font = ImageFont.load_default(LINE_HEIGHT - 5)
    wrapped = [(left, _wrap(text, font, width - 2)) for left, text in texts]
    canvas = Image.new("RGB", (picture.shape[1], LINE_HEIGHT * max(len(lines) for _, lines in wrapped)))
    draw = ImageDraw.Draw(canvas)
    for left, lines in wrapped:
        for number, line in enumerate(lines):
            draw.text((left, number * LINE_HEIGHT), line, fill=(255, 255, 255), font=font)
    return np.concatenate([np.asarray(canvas), picture])


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """Split text into lines of at most `width` pixels, at spaces if possible."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text):
        if lines[-1] and font.getlength((lines[-1] + word).rstrip()) > width:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength((lines[-1] + letter).rstrip()) > width:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]

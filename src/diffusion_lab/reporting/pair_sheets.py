"""Sheets of pairs of images with captions."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_lab.reporting.image_grids import grid

LINE_HEIGHT = 16
"""Height of a line of text in pixels."""


def pair_sheet(pairs: Sequence[tuple[Tensor, Sequence[str]]], num_columns: int = 6) -> np.ndarray:
    """Draw pairs of images, each pair below its captions.  Returns uint8 [height, width, 3].

    pairs: one or more pairs, each with the two images [2, C, H, W], uint8 or float in [-1, 1], and lines of text.
    """
    cells = [_cell(images, captions) for images, captions in pairs]
    height = max(len(cell) for cell in cells)
    cells = [np.pad(cell, ((height - len(cell), 0), (0, 0), (0, 0))) for cell in cells]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % num_columns)
    rows = [np.concatenate(cells[k : k + num_columns], axis=1) for k in range(0, len(cells), num_columns)]
    return np.concatenate(rows)


def _cell(images: Tensor, captions: Sequence[str]) -> np.ndarray:
    picture = grid(images, num_columns=2)
    for caption in reversed(captions):
        picture = add_text(picture, [(2, caption)], picture.shape[1])
    return picture


def add_text(picture: np.ndarray, texts: Sequence[tuple[int, str]], width: int) -> np.ndarray:
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

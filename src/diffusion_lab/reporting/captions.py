"""Captions of pictures."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LINE_HEIGHT = 18
"""Height in pixels of a line of a caption."""


def with_caption(picture: np.ndarray, lines: list[str]) -> np.ndarray:
    """Return a picture with lines of text below it, in Pillow's default font; longer lines are cut.

    picture: uint8 [height, width, 3].  Returns uint8 [height + LINE_HEIGHT len(lines), width, 3].
    """
    height, width = picture.shape[:2]
    extended = Image.new("RGB", (width, height + LINE_HEIGHT * len(lines)), "black")
    extended.paste(Image.fromarray(picture), (0, 0))
    draw, font = ImageDraw.Draw(extended), ImageFont.load_default(13)
    for number, line in enumerate(lines):
        draw.text((3, height + LINE_HEIGHT * number), line, "white", font)
    return np.asarray(extended)

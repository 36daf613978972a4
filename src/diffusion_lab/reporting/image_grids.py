"""Grids, animations and contact sheets of images.

Float images are always displayed on the scale from -1 to 1. They are not rescaled to the minimum and maximum of each
image, so that saturated pixels are visible.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from diffusion_lab.files.atomic import atomic_file
from diffusion_lab.files.regular import open_regular
from diffusion_lab.pixels import to_uint8
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.reporting.videos import save_video

MAX_BYTES, MAX_PIXELS, TALLEST = 2**28, 10**8, 8
"""Largest picture in a contact sheet, as a file and as an image, and its largest height in multiples of its width."""


def grid(images: Tensor, num_columns: int, tile: int = 56) -> np.ndarray:
    """Return a grid of all images, uint8 [height, width, 3].  images: [B, C, H, W], uint8 or float in [-1, 1].

    tile: approximate side in pixels to which smaller images are upsampled by an integer factor.
    """
    pixels = images.cpu() if images.dtype == torch.uint8 else to_uint8(images.cpu())
    factor = max(1, round(tile / pixels.shape[-1]))
    pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    picture: np.ndarray = make_grid(pixels, nrow=num_columns, padding=2).permute(1, 2, 0).numpy()
    return picture


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Return each image of `left` next to that of `right`, both with the channels and the height of the larger ones.

    left, right: uint8 [B, C, H, W] with 1 or 3 channels and any square size each.  Returns uint8 [B, C, H, 2 H].
    """
    side, channels = max(left.shape[2], right.shape[2]), max(left.shape[1], right.shape[1])
    fitted = [F.interpolate(images.cpu(), side, mode="nearest") for images in (left, right)]
    return torch.cat([images.expand(-1, channels, -1, -1) for images in fitted], dim=3)


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write an image, uint8 [height, width, 3], as PNG."""
    with atomic_file(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")


def save_animation(
    frames: Sequence[np.ndarray], path: Path, *, fps: float | None = None, seconds: float = 2.0, rest: float = 1.5
) -> None:
    """Write frames as a repeating animation in the format of the suffix of `path`, .webp, .gif or .mp4.

    frames: images, uint8 [height, width, 3].
    fps: frames per second; None divides `seconds`, the approximate duration of all frames before the last frame.
    rest: duration of the last frame, in seconds; at least that of the others.
    """
    duration = seconds / len(frames) if fps is None else 1 / fps
    rest = max(rest, duration)
    if path.suffix == ".mp4":
        save_video([*frames, *[frames[-1]] * (round(rest / duration) - 1)], path, fps=1 / duration)
        return
    pictures = [Image.fromarray(frame) for frame in frames]
    durations = [round(1000 * duration)] * (len(frames) - 1) + [round(1000 * rest)]
    options = {"append_images": pictures[1:], "duration": durations, "loop": 0, "quality": 80}
    with atomic_file(path) as partial:
        pictures[0].save(partial, format=path.suffix[1:], save_all=True, **options)


def save_sheet(pictures: Mapping[str, Path], path: Path, *, width: int = 320) -> None:
    """Write a contact sheet of image files as PNG. Each image is placed below its label.

    pictures: label -> PNG file; another or a damaged file is shown as a gray square.
    width: width in pixels to which each image is resized; a tall image is narrower.
    """
    line_height = 18
    tiles = []
    for label, file in pictures.items():
        picture = _read_picture(file) or Image.new("RGB", (width, width), "gray")
        scale = min(width / picture.width, TALLEST * width / picture.height)
        size = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        lines = textwrap.wrap(terminal_text(label, 400), width // 7, break_on_hyphens=False) or [""]
        tile = Image.new("RGB", (width, line_height * len(lines) + 4 + picture.height), "white")
        ImageDraw.Draw(tile).multiline_text((2, 0), "\n".join(lines), "black", ImageFont.load_default(13), spacing=4)
        tile.paste(picture, (0, line_height * len(lines) + 4))
        tiles.append(tile)
    num_columns = min(4, len(tiles))
    height = max(tile.height for tile in tiles) + 12
    sheet = Image.new("RGB", (num_columns * (width + 12), -(-len(tiles) // num_columns) * height), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % num_columns * (width + 12) + 6, number // num_columns * height))
    with atomic_file(path) as partial:
        sheet.save(partial, format="PNG")


def _read_picture(file: Path) -> Image.Image | None:
    """Return the image in a PNG file, which another person may have written; None for any other file.

    The format is not guessed from the content, because Pillow would run Ghostscript for an EPS file.
    """
    try:
        with open_regular(file, MAX_BYTES) as stream, Image.open(stream, formats=["PNG"]) as opened:
            return opened.convert("RGB") if opened.width * opened.height <= MAX_PIXELS else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None

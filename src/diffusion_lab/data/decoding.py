"""The bytes of an image file -> one square of 8-bit levels.

Free of torch, so that the processes that decode a large set start quickly.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

VERSION = 1
"""Of the steps below: raised with every change of their pixels, so that no older cache is taken for theirs."""

MODES = {1: "L", 3: "RGB"}
FITS = ("pad", "resize", "adm")
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
MAX_PIXELS = 89_478_485
"""A quarter of a gigabyte of RGB, where Pillow too begins to suspect an attack."""

Image.init()
# No format that starts another program (EPS) or that draws instead of storing pixels (WMF).
FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN
)


class DamagedImageError(ValueError):
    """The bytes are no image that could be shown honestly; the text is the reason, without a full stop."""


@dataclass(frozen=True)
class Preparation:
    """How an image of any size and mode becomes a square of `channels` x `resolution` x `resolution`.

    fit: "pad" puts the image in the middle of black; "resize" crops the middle square and resizes it with antialiasing;
    "adm" halves by box filters, resizes the shorter side bicubically and crops (the code of Dhariwal & Nichol 2021).
    resample: the filter of "resize", one of bicubic, lanczos, box.
    """

    channels: int = 3
    resolution: int = 32
    fit: Literal["pad", "resize", "adm"] = "resize"
    resample: Literal["bicubic", "lanczos", "box"] = "bicubic"

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}.")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {self.fit}.")
        if self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}.")
        if self.resample not in FILTERS:
            raise ValueError(f"resample must be one of {', '.join(FILTERS)}, got {self.resample}.")
        if self.fit != "resize" and self.resample != "bicubic":
            raise ValueError(f"resample must be bicubic unless fit=resize, got {self.resample} with fit={self.fit}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.resolution, self.resolution

    def decode(self, content: bytes) -> np.ndarray:
        """The image in a file's bytes: uint8 [C, H, W].

        Raises DamagedImageError where there is none, ValueError where it is larger than the square it is padded to.
        """
        try:
            image = _with_mode(_upright(_opened(content)), MODES[self.channels])
        except DamagedImageError:
            raise
        except Exception as error:  # Pillow answers damage with errors of a dozen types
            raise DamagedImageError(_reason(error)) from error
        side = self.resolution
        if image.size != (side, side):
            image = {"pad": _padded, "resize": self._resized, "adm": _as_adm}[self.fit](image, side)
        return np.asarray(image).reshape(side, side, self.channels).transpose(2, 0, 1)

    def _resized(self, image: Image.Image, side: int) -> Image.Image:
        # Cropped first: resizing a box of the image would let its surroundings leak in at the edges.
        return _middle(image, min(image.size)).resize((side, side), FILTERS[self.resample])


def _opened(content: bytes) -> Image.Image:
    """The image as stored, its pixels decoded; its size is judged before they are."""
    if not content:
        raise DamagedImageError("it is empty")
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise DamagedImageError(f"it claims {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    if image.format == "PNG":
        _require_whole_png(content)
    image.load()
    return image


def _require_whole_png(content: bytes) -> None:
    """Checks the sums of all chunks: Pillow skips those of the pixels, and would show what a flipped bit made."""
    view, place, kind = memoryview(content), 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 8 + length
        if struct.unpack_from(">I", content, end)[0] != zlib.crc32(view[place + 4 : end]):
            raise DamagedImageError(f"the checksum of its part {kind.decode('latin-1')!r} is wrong")
        place = end + 4


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # its notes are damaged, its pixels are not: shown as stored
        return image
    return image


def _with_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255 instead of scaling them
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DamagedImageError(f"its mode {image.mode} has no range that would tell black from white")
    if image.has_transparency_data:  # as a page shows it; dropping alpha would show what was hidden
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image if image.mode == mode else image.convert(mode)


def _padded(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) > side:
        raise ValueError(
            f"data.resolution must be at least the images' side to pad them, {max(image.size)}, got {side}; "
            "try data.fit=resize."
        )
    canvas = Image.new(image.mode, (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _as_adm(image: Image.Image, side: int) -> Image.Image:
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise DamagedImageError(f"its sides {image.width} x {image.height} are too unequal")
    return _middle(image.resize((width, height), Image.Resampling.BICUBIC), side)


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text holds an address in memory
        return f"it is no image in any of the formats {', '.join(FORMATS)}"
    if isinstance(error, struct.error):
        return "it ends too early"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__

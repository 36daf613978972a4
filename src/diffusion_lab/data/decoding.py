"""Decoding of one image: the bytes of an image file -> uint8 [C, resolution, resolution].

This module does not import torch, so that the worker processes that decode a large set start quickly.
"""

import contextlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from typing import IO, Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

VERSION = 1
"""Decoder version. Increment it whenever the decoded pixels change, so that cached sets are rebuilt."""

MODES = {1: "L", 3: "RGB"}
FITS = ("pad", "resize", "adm", "exact")
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
MAX_PIXELS = 89_478_485
"""Largest accepted number of pixels (268 MB as RGB), above which Pillow warns of decompression bombs."""
MAX_SCANS, MAX_SCANNED_PIXELS = 1000, 20 * MAX_PIXELS
"""Largest accepted number of scans of a JPEG file, and of the pixels of all scans.

Each scan takes time in proportion to all pixels of the image. Progressive files have about 10 scans.
"""
PLAIN_PPM, MAX_PLAIN_BYTES, MAX_COMMENTS = (b"P1", b"P2", b"P3"), 20_000_000, 1000
"""First bytes of PPM files with numbers as text, which Pillow parses slowly, and their largest size and number of #."""
MAX_READS = 1_000_000
"""Largest number of reads of a file. Pillow reads each part of a header and each run of a BMP file alone."""
TIFF_BLOCKS, TIFF_SAMPLES, MAX_SAMPLES = (322, 323, 278), 277, 8
"""TIFF tags of tile width, tile height, rows per strip and samples per pixel, and the largest number of samples."""

Image.init()
with contextlib.suppress(ImportError):  # the extra `heic`
    import pillow_heif

    pillow_heif.register_heif_opener()
# Excludes formats that run another program (EPS) or contain drawing commands instead of pixels (WMF).
FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
    if name in Image.OPEN
)


REMEDIES = {
    "AVIF": "AVIF files need Pillow 11.3 or newer",
    "HEIF": "HEIC files need the package pillow-heif, which pip install 'diffusion-lab-framework[heic]' installs",
}
"""Optional formats, and what they need."""
BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis"), "HEIF")
"""Bytes 8 to 12 of files in the optional formats."""
ORIENTATION, ROTATED = 0x0112, (5, 6, 7, 8)
"""EXIF tag of the orientation, and its values that exchange width and height."""


class WrongSizeError(ValueError):
    """An image whose size is not accepted.  The message is the size."""


class DamagedImageError(ValueError):
    """Bytes that cannot be decoded reliably.  The message is the reason, without a final period."""


@dataclass(frozen=True)
class Preparation:
    """Conversion of an image of any size and mode to `channels` x `resolution` x `resolution`.

    fit: "pad" centers the image on black; "resize" crops the center square and resizes it with antialiasing; "adm"
        halves the image repeatedly with a box filter, resizes its shorter side bicubically and crops the center square
        (code of Dhariwal & Nichol 2021); "exact" raises WrongSizeError for an image of another size.
    resample: resampling filter for fit="resize", one of bicubic, lanczos, box.
    """

    channels: int = 3
    resolution: int = 32
    fit: Literal["pad", "resize", "adm", "exact"] = "resize"
    resample: Literal["bicubic", "lanczos", "box"] = "bicubic"

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {self.channels}.")
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
        """Decode the bytes of an image file to uint8 [C, H, W].

        Raises DamagedImageError if the bytes cannot be decoded, ValueError if the image is too large to be padded, and
        WrongSizeError for an image of another size with fit="exact".
        """
        try:
            image = _convert(_rotate_upright(_open(content)), MODES[self.channels])
        except DamagedImageError:
            raise
        except Exception as error:  # Pillow raises a dozen types of errors for damaged files
            raise DamagedImageError(_reason(error, content)) from error
        side = self.resolution
        return np.asarray(self._fitted(image)).reshape(side, side, self.channels).transpose(2, 0, 1)

    def transparency(self, content: bytes) -> np.ndarray:
        """Return 255 minus the opacity of each pixel of an image file: uint8 [1, H, W], 0 in an opaque image.

        Raises DamagedImageError, ValueError and WrongSizeError as `decode`.
        """
        self.decode(content)
        image = _rotate_upright(_open(content))
        if not image.has_transparency_data:
            return np.zeros((1, self.resolution, self.resolution), dtype=np.uint8)
        opacity = image.convert("RGBA").getchannel("A")
        return np.asarray(self._fitted(ImageOps.invert(opacity)))[None]

    def mask(self, content: bytes) -> tuple[np.ndarray, bool]:
        """Decode an image file with a mask: gray levels, white where images are filled, uint8 [1, H, W].

        Programs save white strokes on a transparent layer, or holes that are transparent in a layer without white.
        The second result is whether there is no white, so that the levels are those of `transparency`.
        Raises DamagedImageError, ValueError and WrongSizeError as `decode`.
        """
        gray = replace(self, channels=1)
        gray.decode(content)
        image = _rotate_upright(_open(content))
        if not image.has_transparency_data:
            return gray.decode(content), False
        page = Image.new("RGBA", image.size, "black")
        page.alpha_composite(image.convert("RGBA"))
        levels = np.asarray(gray._fitted(page.convert("L")))[None]
        return (levels, False) if levels.max() >= 128 else (gray.transparency(content), True)

    def _fitted(self, image: Image.Image) -> Image.Image:
        """Return an image in the size `resolution` x `resolution`."""
        side = self.resolution
        fits = {"pad": _pad, "resize": self._resize, "adm": _resize_as_adm, "exact": _refuse}
        return image if image.size == (side, side) else fits[self.fit](image, side)

    def _resize(self, image: Image.Image, side: int) -> Image.Image:
        # The image is cropped first: resizing with a box would blend pixels from outside the box into the edges.
        return _center_crop(image, min(image.size)).resize((side, side), FILTERS[self.resample])


def _open(content: bytes) -> Image.Image:
    """Decode the image as stored.  The image size is checked before any pixel is decoded."""
    if not content:
        raise DamagedImageError("the file is empty")
    if content.startswith(PLAIN_PPM):
        _require_short_text(content)
    image = Image.open(_CountedReads(io.BytesIO(content)), formats=FORMATS)
    _require_few_pixels("the header", *image.size)
    if image.format == "PNG":
        _verify_png_checksums(content)
    elif image.format == "TIFF":
        _require_small_blocks(image)
    elif image.format in ("JPEG", "MPO"):
        _require_few_scans(content.count(b"\xff\xda"), *image.size)
    image.load()
    return image


class _CountedReads:
    """A file that Pillow reads.  After MAX_READS reads, it raises DamagedImageError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._num_reads = file, 0

    def read(self, size: int = -1) -> bytes:
        self._num_reads += 1
        if self._num_reads > MAX_READS:
            raise DamagedImageError(f"the file has too many parts, which take more than {MAX_READS:,} reads")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def header_size(file: IO[bytes]) -> tuple[int, int] | None:
    """Return width and height of an upright image file without decoding its pixels; None if it cannot be read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(_CountedReads(file), formats=FORMATS) as image:
            # Pillow would decode all pixels to search for the EXIF metadata of a PNG file.
            rotated = image.format in ("JPEG", "MPO", "WEBP", "TIFF") and image.getexif().get(ORIENTATION) in ROTATED
            return (image.height, image.width) if rotated else image.size
    except Exception:  # Pillow raises a dozen types of errors for damaged files
        return None


def _require_few_pixels(source: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DamagedImageError(f"{source} states {width} x {height} pixels, more than {MAX_PIXELS:,}")


def _require_short_text(content: bytes) -> None:
    if len(content) > MAX_PLAIN_BYTES or content.count(b"#") > MAX_COMMENTS:
        limits = f"{MAX_PLAIN_BYTES:,} bytes or {MAX_COMMENTS:,} comments"
        raise DamagedImageError(f"the file is a PPM file of text with more than {limits}")


def _require_few_scans(num_scans: int, width: int, height: int) -> None:
    limit = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(1, width * height))
    if num_scans > limit:
        raise DamagedImageError(f"the file has {num_scans:,} scans of {width} x {height} pixels, more than {limit:,}")


def _require_small_blocks(image: Any) -> None:
    """Raise DamagedImageError for a TIFF file with large tiles or strips, which are decoded whole."""
    tile_width, tile_height, rows = (int(image.tag_v2.get(tag) or 0) for tag in TIFF_BLOCKS)
    _require_few_pixels("a tile", tile_width, tile_height)
    _require_few_pixels("a strip", image.width, min(rows, image.height))
    if (num_samples := int(image.tag_v2.get(TIFF_SAMPLES, 1))) > MAX_SAMPLES:
        raise DamagedImageError(f"the header states {num_samples} samples per pixel, more than {MAX_SAMPLES}")


def _verify_png_checksums(content: bytes) -> None:
    """Raise DamagedImageError if a chunk has a wrong checksum: Pillow does not verify the checksums of pixel data."""
    view, position, kind = memoryview(content), 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 8 + length
        if struct.unpack_from(">I", content, end)[0] != zlib.crc32(view[position + 4 : end]):
            raise DamagedImageError(f"the checksum of chunk {kind.decode('latin-1')!r} is wrong")
        position = end + 4


def _rotate_upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # the metadata is damaged but not the pixels, which are used as stored
        return image
    return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255 instead of scaling them
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DamagedImageError(f"image mode {image.mode} does not define which values are black and white")
    if image.has_transparency_data:  # composited on white, as in a browser; dropping alpha would reveal hidden colors
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image if image.mode == mode else image.convert(mode)


def _pad(image: Image.Image, side: int) -> Image.Image:
    if max(image.size) > side:
        raise ValueError(
            f"data.resolution must be at least {max(image.size)} (the longer side of an image) for data.fit=pad, got "
            f"{side}; try data.fit=resize."
        )
    canvas = Image.new(image.mode, (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _refuse(image: Image.Image, side: int) -> Image.Image:
    raise WrongSizeError(f"{image.width} x {image.height} pixels")


def _resize_as_adm(image: Image.Image, side: int) -> Image.Image:
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise DamagedImageError(f"the aspect ratio of {image.width} x {image.height} pixels is too extreme")
    return _center_crop(image.resize((width, height), Image.Resampling.BICUBIC), side)


def _center_crop(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _reason(error: Exception, content: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message contains a memory address
        optional = BRANDS.get(content[8:12]) if content[4:8] == b"ftyp" else None
        if optional and optional not in FORMATS:
            return REMEDIES[optional]
        return f"the file is not an image in any of the formats {', '.join(FORMATS)}"
    if isinstance(error, struct.error):
        return "the file is truncated"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__

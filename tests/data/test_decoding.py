"""Decoding of single images."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.data.decoding import DamagedImageError, Preparation


def encode(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """Image whose levels increase to the right and downwards, so that all its rotations and flips differ."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray((3 * columns + 40 * rows).astype(np.uint8))


def recode(
    image: Image.Image, channels: int = 1, side: int = 4, format_name: str = "PNG", **options: Any
) -> np.ndarray:
    """Encode and decode an image."""
    return Preparation(channels, side).decode(encode(image, format_name, **options))


def test_channels_come_first() -> None:
    assert recode(Image.new("RGB", (4, 4), (10, 20, 30)), channels=3)[:, 1, 2].tolist() == [10, 20, 30]


def test_colors_become_gray_by_luma_and_gray_becomes_three_equal_channels() -> None:
    green = Image.new("RGB", (4, 4), (0, 200, 0))
    assert recode(green)[0, 0, 0] == pytest.approx(0.587 * 200, abs=1)  # ITU-R 601
    assert recode(Image.new("L", (4, 4), 77), channels=3)[:, 0, 0].tolist() == [77, 77, 77]


def test_palettes_cmyk_and_single_bits_are_converted() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert recode(red.convert("P", palette=Image.Palette.ADAPTIVE), channels=3)[:, 0, 0].tolist() == [255, 0, 0]
    assert recode(red.convert("CMYK"), channels=3, format_name="TIFF")[:, 0, 0].tolist() == [255, 0, 0]
    assert recode(Image.new("1", (4, 4), 1))[0, 0, 0] == 255


def test_transparent_pixels_are_composited_on_white() -> None:
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 51))  # a fifth of red, four fifths of white
    assert recode(half, channels=3)[:, 0, 0].tolist() == [244, 204, 204]
    keyed = Image.new("L", (4, 4), 9)
    assert recode(keyed, transparency=9)[0, 0, 0] == 255


def test_sixteen_bits_are_scaled_and_rounded() -> None:
    levels = np.array([[0, 128, 129, 257], [32768, 65535, 65406, 65407]] * 2, dtype=np.uint16)
    image = recode(Image.fromarray(levels))[0]
    assert image[:2].tolist() == [[0, 0, 1, 1], [128, 255, 254, 255]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_value_range_are_refused(mode: str) -> None:
    with pytest.raises(DamagedImageError, match=f"image mode {mode} does not define"):
        recode(Image.new(mode, (4, 4), 300), format_name="TIFF")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_upright_for_every_exif_orientation(orientation: int) -> None:
    upright, exif = gradient(4, 4), Image.Exif()
    # The pixels that a camera stores with this orientation: EXIF 2.32, table 6.
    transpose = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    pixels = upright if transpose is None else upright.transpose(Image.Transpose(transpose))
    exif[0x0112] = orientation
    assert np.array_equal(recode(pixels, exif=exif)[0], np.asarray(upright))


def test_damaged_metadata_is_ignored() -> None:
    image = recode(gradient(4, 4), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert np.array_equal(image[0], np.asarray(gradient(4, 4)))


def test_the_center_square_is_averaged_by_the_box_filter() -> None:
    wide = np.zeros((4, 8), dtype=np.uint8)
    wide[:, 2:6] = [[10, 20, 30, 40]] * 4
    image = Preparation(1, 2, resample="box").decode(encode(Image.fromarray(wide)))
    assert image[0].tolist() == [[15, 35], [15, 35]]


def test_all_filters_antialias() -> None:
    stripes = Image.fromarray(
        np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    )  # finer than the result can resolve
    for resample in ("bicubic", "lanczos", "box"):
        image = Preparation(1, 8, resample=resample).decode(encode(stripes))
        assert np.abs(image[0, 2:6, 2:6].astype(int) - 127).max() <= 3
    sharp = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 4, axis=1).repeat(8, axis=0))
    soft, hard = (Preparation(1, 4, resample=r).decode(encode(sharp)) for r in ("lanczos", "box"))
    assert not np.array_equal(soft, hard)


def test_adm_halves_with_box_filters_then_resizes_then_crops() -> None:
    levels = 16 * np.random.default_rng(0).integers(0, 16, (36, 44), dtype=np.uint8)  # means of 16 are whole numbers
    quartered = levels.reshape(9, 4, 11, 4).mean((1, 3)).astype(np.uint8)  # halved twice: 36 and 18 are at least 2 * 8
    expected = np.asarray(Image.fromarray(quartered).resize((10, 8), Image.Resampling.BICUBIC))[:, 1:9]
    image = Preparation(1, 8, fit="adm").decode(encode(Image.fromarray(levels)))
    assert np.array_equal(image[0], expected)


def test_padding_centers_the_image() -> None:
    image = Preparation(1, 6, fit="pad").decode(encode(Image.new("L", (4, 2), 9)))
    assert image[0].tolist() == [[0] * 6] * 2 + [[0, 9, 9, 9, 9, 0]] * 2 + [[0] * 6] * 2


def test_an_image_that_is_too_large_to_pad_is_a_wrong_setting_and_not_damage() -> None:
    with pytest.raises(
        ValueError, match=r"must be at least 9 \(the longer side .*\) for data\.fit=pad, got 4; try data\.fit"
    ) as caught:
        Preparation(1, 4, fit="pad").decode(encode(gradient(9, 3)))
    assert not isinstance(caught.value, DamagedImageError)


def with_header_size(width: int, height: int) -> bytes:
    """PNG whose header, with a valid checksum, states another size than that of its pixels."""
    content = bytearray(encode(gradient(4, 4)))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "the file is not an image in any of the formats PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "the file is not an image in any of the formats"),
        (encode(gradient(40, 40))[:-20], "the file is truncated"),
        (encode(gradient(40, 40), "JPEG")[:-200], "truncated"),
        (with_header_size(30_000, 30_000), "pixels"),
        (with_header_size(10_000, 9_000), "pixels"),
        (with_header_size(5, 5), "image file is truncated|unrecognized data stream|broken data stream"),
        (with_header_size(0, 4), "."),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damage_is_reported_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(DamagedImageError, match=reason):
        Preparation(1, 4).decode(content)


def test_every_flipped_bit_of_a_png_is_detected() -> None:
    intact = encode(gradient(8, 8))
    for bit in range(8 * len(intact)):
        content = bytearray(intact)
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedImageError):
            Preparation(1, 8).decode(bytes(content))


def test_an_extreme_aspect_ratio_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(DamagedImageError, match="the aspect ratio of 1 x 50000 pixels is too extreme"):
        Preparation(1, 64, fit="adm").decode(encode(Image.new("L", (1, 50_000))))


def test_unused_and_unknown_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="resample must be bicubic unless fit=resize, got box with fit=adm"):
        Preparation(fit="adm", resample="box")
    with pytest.raises(ValueError, match="resample must be one of bicubic, lanczos, box, got nearest"):
        Preparation(resample="nearest")  # type: ignore[arg-type]


def test_transparent_pixels_are_found_in_the_size_of_the_prepared_image() -> None:
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    found = Preparation(3, 4).transparency(encode(image))
    assert (found >= 128).tolist() == [[[True, True, False, False]] * 4]
    padded = Preparation(3, 10, "pad").transparency(encode(image))  # the border is opaque
    assert int((padded > 0).sum()) == 4 * 8
    opaque = Preparation(1, 4).transparency(encode(image.convert("RGB")))
    assert (opaque.shape, int(opaque.max())) == ((1, 4, 4), 0)

"""Images of unknown origin: folders, `.zip` and `.npz` files from other programs, some of them damaged or hostile."""

import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.data import Images, ImageStore
from diffusion_lab.data.decoding import Preparation
from diffusion_lab.data.sample_source import SPLIT, SampleSource, natural_order
from support.time_limit import time_limit

SIDE = 6


def pixels(size: int = 12, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, SIDE, SIDE, channels), dtype=np.uint8)


def load(path: Path, *, channels: int = 3, resolution: int = SIDE, fit: str = "exact", on_error: str = "raise",
         files: tuple[str, ...] | None = None) -> Images:  # fmt: skip
    source = SampleSource(path, files)
    preparation = Preparation(channels, resolution, fit)  # type: ignore[arg-type]
    return ImageStore.of_source(source, preparation, on_error=on_error).load(SPLIT)  # type: ignore[arg-type]


def write_files(folder: Path, images: np.ndarray, name: str = "{}.png") -> Path:
    for number, image in enumerate(images):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        lossless = {"lossless": True} if path.suffix == ".webp" else {}
        Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image).save(path, **lossless)  # type: ignore[arg-type]
    return folder


def write_zip(path: Path, images: np.ndarray) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, image in reversed(list(enumerate(images))):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="png")
            archive.writestr(f"samples/{number}.png", buffer.getvalue())
        archive.writestr("samples/readme.txt", "no image")
        archive.writestr("__MACOSX/samples/._0.png", "no image")
    return path


def write_npz(path: Path, images: np.ndarray) -> Path:
    np.savez(path, images, np.arange(len(images)))
    return path


def write_packed(path: Path, images: np.ndarray) -> Path:
    np.savez_compressed(path, images)
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("folder", write_files),
        ("webp", lambda path, images: write_files(path, images, "{}.webp")),
        ("classes", lambda path, images: write_files(path, images, "class/{}.png")),
        ("set.npz", write_npz),
        ("packed.npz", write_packed),
    ],
)
def test_all_formats_give_the_same_images_in_natural_order(
    name: str, write: Callable[[Path, np.ndarray], Path], channels: int, tmp_path: Path
) -> None:
    images = pixels(channels=channels)  # 12 images: 2.png precedes 10.png
    found = load(write(tmp_path / name, images), channels=channels)
    assert np.array_equal(found.gather(np.arange(12)).permute(0, 2, 3, 1).numpy(), images)


def test_a_zip_file_has_the_images_of_its_members_in_natural_order(tmp_path: Path) -> None:
    found = load(write_zip(tmp_path / "set.zip", pixels()))
    assert np.array_equal(found.gather(np.arange(12)).permute(0, 2, 3, 1).numpy(), pixels())


def test_names_of_splits_have_no_meaning(tmp_path: Path) -> None:
    write_files(tmp_path, pixels(3), "train/{}.png")
    write_files(tmp_path, pixels(4), "test/{}.png")
    assert len(load(tmp_path)) == 7


def test_a_three_channel_copy_of_gray_images_is_decoded_to_the_gray_images(tmp_path: Path) -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(-1, 4, 4, 1)
    found = load(write_npz(tmp_path / "set.npz", gray.repeat(3, axis=-1)), channels=1, resolution=4)
    assert np.array_equal(found.gather(np.arange(16)).permute(0, 2, 3, 1).numpy(), gray)


def test_numbers_in_names_are_ordered_by_value() -> None:
    names = ["b/1.png", "a10/2.png", "a2/10.png", "a2/9.png", "a2/09.png", "x" + "9" * 5000 + ".png", "x10.png"]
    assert sorted(names, key=natural_order) == [
        "a2/09.png", "a2/9.png", "a2/10.png", "a10/2.png", "b/1.png", "x10.png", "x" + "9" * 5000 + ".png",
    ]  # fmt: skip


def test_an_image_of_another_size_is_refused_or_resized(tmp_path: Path) -> None:
    write_files(tmp_path, pixels(3))
    Image.new("RGB", (9, 8)).save(tmp_path / "7.png")
    with pytest.raises(ValueError, match=r"images of 6 x 6 .* image 3 \(.*7\.png\) has 9 x 8 pixels; preparation\.fit"):
        load(tmp_path)
    assert len(load(tmp_path, fit="resize")) == 4


def test_damaged_images_are_refused_or_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_files(tmp_path, pixels(5))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"\(number 3, .*3\.png: .*truncated.*\); set preparation\.on_error=skip"):
        load(tmp_path)
    caplog.set_level("WARNING")
    assert len(load(tmp_path, on_error="skip")) == 4
    assert "4 images are used; left out: 1 (damaged, listed in" in caplog.text


def test_the_side_length_is_that_of_the_first_image(tmp_path: Path) -> None:
    assert SampleSource(write_files(tmp_path / "a", pixels(2))).first_side() == SIDE
    assert SampleSource(write_npz(tmp_path / "a.npz", pixels(2))).first_side() == SIDE
    assert SampleSource(write_zip(tmp_path / "a.zip", pixels(2))).first_side() == SIDE
    Image.new("RGB", (9, 8)).save(tmp_path / "a" / "0.png")
    with pytest.raises(ValueError, match=r"must contain square images, got 9 x 8 pixels"):
        SampleSource(tmp_path / "a").first_side()


def npy(shape: str, dtype: str = "|u1", content: bytes = b"", order: str = "False") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content


def archive_of(name: str, content: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def of_array(*arguments: str, **options: str) -> bytes:
    return archive_of("arr_0.npy", npy(*arguments, **options))  # type: ignore[arg-type]


def wrong_checksum() -> bytes:
    content = of_array("(2, 2, 2, 3)", content=bytes(range(24)))  # type: ignore[arg-type]
    return content.replace(bytes(range(24)), bytes(24), 1)


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([os.system, "touch /tmp/never"], dtype=object), allow_pickle=True)

HOSTILE_ARRAYS = {
    "empty file": (b"", r"not a zip file"),
    "no archive": (b"PK" + bytes(50), r"not a zip file"),
    "no array": (archive_of("mu.npy", npy("(2,)")), r"must contain the array arr_0, got mu"),
    "pickled objects": (archive_of("arr_0.npy", OBJECTS.getvalue()), r"arr_0 must be uint8, got object"),
    "floats": (of_array("(2, 2, 2, 3)", "<f4"), r"arr_0 must be uint8, got float32"),
    "channels first": (of_array("(2, 3, 6, 6)"), r"\[N, H, W, 3\].*, got \[2, 3, 6, 6\]"),
    "huge shape": (of_array("(10000000, 99999, 99999, 3)"), r"must have the [\d,]+ bytes of its shape, got 0"),
    "negative shape": (of_array("(-1, 2, 2, 3)"), r"must have the -12 bytes|shape"),
    "fortran order": (of_array("(2, 2, 2, 3)", order="True"), r"C order, got Fortran"),
    "truncated": (of_array("(2, 2, 2, 3)", content=bytes(24))[:-60], r"not a zip file"),  # type: ignore[arg-type]
    "wrong checksum": (wrong_checksum(), r"Bad CRC-32"),
    "bomb": (archive_of("arr_0.npy", npy("(1, 2, 2, 3)", content=bytes(10**7)), zipfile.ZIP_DEFLATED), r"12 bytes of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_ARRAYS)
def test_a_damaged_or_hostile_npz_file_is_refused(kind: str, tmp_path: Path) -> None:
    content, reason = HOSTILE_ARRAYS[kind]
    (tmp_path / "set.npz").write_bytes(content)
    with time_limit(5), pytest.raises(ValueError, match=rf"images=.*set\.npz cannot be read as images: .*{reason}"):
        load(tmp_path / "set.npz")


HOSTILE_MEMBERS = {
    "no image": b"hello",
    "empty": b"",
    "huge header": b"P6\n99999 99999\n255\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n",
    "script": b"#!/bin/sh\ntouch /tmp/never\n",
    "truncated png": b"\x89PNG\r\n\x1a\n" + bytes(5),
}


@pytest.mark.parametrize("kind", HOSTILE_MEMBERS)
def test_a_damaged_or_hostile_member_of_a_zip_file_is_refused_or_left_out(kind: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", pixels(4))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("samples/9.png", HOSTILE_MEMBERS[kind])
    with time_limit(5), pytest.raises(ValueError, match=r"contains an image that cannot be read \(number \d, .*9\.png"):
        load(path)
    assert len(load(path, on_error="skip")) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["set.zip"]


@pytest.mark.parametrize("kind", ["encrypted", "checksum", "lying size", "unknown compression"])
def test_a_member_that_cannot_be_unpacked_is_left_out(kind: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", pixels(4))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    if kind == "encrypted":
        content[entry + 8] |= 1
        content[6] |= 1
    elif kind == "checksum":
        content[60] ^= 255
    elif kind == "lying size":
        content[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)
    else:
        content[entry + 10 : entry + 12] = struct.pack("<H", 77)
    path.write_bytes(content)
    with time_limit(5):
        assert len(load(path, on_error="skip")) == 3


def test_files_that_are_no_regular_files_are_left_out(tmp_path: Path) -> None:
    write_files(tmp_path, pixels(3))
    os.mkfifo(tmp_path / "9.png")
    (tmp_path / "8.png").symlink_to("/dev/zero")
    (tmp_path / "7.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    with time_limit(5):
        assert len(load(tmp_path)) == 3


def test_random_damage_never_raises_another_error_than_value_error(tmp_path: Path) -> None:
    generator = random.Random(0)
    contents = [
        write_zip(tmp_path / "a.zip", pixels(4)).read_bytes(),
        write_npz(tmp_path / "a.npz", pixels(4)).read_bytes(),
    ]
    outcomes = set()
    for number in range(60):
        content = bytearray(contents[number % 2])
        for _ in range(generator.randrange(1, 6)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path = tmp_path / f"{number}{('.zip', '.npz')[number % 2]}"
        path.write_bytes(content[: generator.choice([len(content), generator.randrange(len(content))])])
        try:
            with time_limit(5):
                outcomes.add(len(load(path, on_error="skip")))
        except ValueError:
            outcomes.add(-1)
    assert {-1, 4} <= outcomes

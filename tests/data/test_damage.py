"""Damaged files: each is left out and counted, or raises a clear error; none results in a wrong image."""

import csv
import io
import random
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images

SIDE, SIZE = 8, 12
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIDE, SIDE), dtype=np.uint8)


def encode(number: int, format_name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(buffer, format_name)
    return buffer.getvalue()


def table(contents: list[bytes | None]) -> pa.Table:
    images = pa.array([{"bytes": content, "path": f"{k}.png"} for k, content in enumerate(contents)])
    return pa.table({"image": images, "label": pa.array([k % 3 for k in range(len(contents))])})


def load(folder: Path, **settings: object) -> Images:
    settings = {"channels": 1, "resolution": SIDE, "cache_folder": folder.parent / "cache"} | settings
    return ImageStore(None, folder, **settings).load()  # type: ignore[arg-type]


def damaged_rows(folder: Path) -> list[dict[str, str]]:
    """Read damaged.csv of the set that was built last."""
    built = max((folder.parent / "cache" / "images").glob("*/meta.json"), key=lambda path: path.stat().st_mtime_ns)
    if not (path := built.parent / "damaged.csv").exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def original_numbers(images: Images) -> list[int]:
    """Return the number of the original image that is identical to each image.  Fails if there is none."""
    pixels = images.gather(np.arange(len(images)))[:, 0].numpy()
    return [next(k for k in range(SIZE) if np.array_equal(PIXELS[k], image)) for image in pixels]


def damage(content: bytes, generator: random.Random) -> bytes:
    """Truncate bytes, overwrite some, flip a bit or repeat a part."""
    kind, position = generator.randrange(4), generator.randrange(1, len(content))
    if kind == 0:
        return content[:position]
    if kind == 1:
        return content[:position] + generator.randbytes(8) + content[position + 8 :]
    if kind == 2:
        return content[:position] + bytes([content[position] ^ 1 << generator.randrange(8)]) + content[position + 1 :]
    return content[:position] + content[max(0, position - 16) :]


def damaged_images() -> Iterator[bytes | None]:
    """Yield bytes that cannot be decoded reliably, without end."""
    generator = random.Random(0)
    yield from (None, b"", b"\0" * 300, b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n")
    for mode in ("I", "F"):
        buffer = io.BytesIO()
        Image.new(mode, (SIDE, SIDE)).save(buffer, "TIFF")
        yield buffer.getvalue()
    for sides in ((60_000, 60_000), (2**31 - 1, 1), (0, 8), (9_000, 10_000)):
        yield b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, *sides, 1, 24, 0, 24, 0, 0, 0, 0)
    while True:
        yield damage(encode(generator.randrange(SIZE)), generator)


def test_eighty_damaged_images_are_left_out_and_listed_and_all_others_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = damaged_images()
    for seed in range(16):
        folder = tmp_path / f"set{seed}"
        folder.mkdir()
        rows = random.Random(seed).sample(range(SIZE), 5)
        contents: list[bytes | None] = [next(damaged) if k in rows else encode(k) for k in range(SIZE)]
        pq.write_table(table(contents), folder / "train-0.parquet")
        images = load(folder)
        assert original_numbers(images) == [k for k in range(SIZE) if k not in rows]
        assert images.label.tolist() == [k % 3 for k in range(SIZE) if k not in rows]
        listed = damaged_rows(folder)
        assert [int(row["number"]) for row in listed] == sorted(rows)
        assert all(row["reason"] and row["file"] == f"{row['number']}.png" for row in listed)
        assert original_numbers(load(folder)) == original_numbers(images)
        assert caplog.text.count(f"left out: 5 (damaged, listed in {tmp_path}") == 2
        assert "rebuilt" not in caplog.text
        caplog.clear()


def test_damaged_metadata_raises_no_warning(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for k in range(SIZE):
        exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
        Image.fromarray(PIXELS[k]).save(tmp_path / "set" / f"{k:02}.png", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert original_numbers(load(tmp_path / "set", label_column=None)) == list(range(SIZE))
    assert [str(warning.message) for warning in caught] == []


def test_a_damaged_jpeg_does_not_affect_other_images(tmp_path: Path) -> None:
    generator = random.Random(1)  # JPEG has no checksums: a damaged file may decode to a different image
    intact = np.asarray(Image.open(io.BytesIO(encode(5, "JPEG"))))
    for repetition in range(5):
        folder = tmp_path / f"set{repetition}"
        folder.mkdir()
        contents: list[bytes | None] = [
            encode(5, "JPEG") if k % 2 else damage(encode(k, "JPEG"), generator) for k in range(SIZE)
        ]
        pq.write_table(table(contents), folder / "train-0.parquet")
        images = load(folder, label_column=None)
        kept = [k for k in range(SIZE) if k not in {int(row["number"]) for row in damaged_rows(folder)}]
        assert len(images) == len(kept) >= 6
        odd = images.gather(np.array([row for row, number in enumerate(kept) if number % 2]))
        assert np.array_equal(odd[:, 0].numpy(), np.broadcast_to(intact, (6, SIDE, SIDE)))


@pytest.mark.parametrize("num_files", [16, pytest.param(200, marks=pytest.mark.full)])
def test_damaged_parquet_files_raise_an_error_or_give_exactly_their_images(num_files: int, tmp_path: Path) -> None:
    sink = io.BytesIO()
    # Without a dictionary, in which a flipped index would refer to another intact image and could not be detected.
    pq.write_table(table([encode(k) for k in range(SIZE)]), sink, compression="none", use_dictionary=False)
    generator, messages = random.Random(2), []
    for repetition in range(num_files):
        folder = tmp_path / f"set{repetition}"
        folder.mkdir()
        (folder / "train-0.parquet").write_bytes(damage(sink.getvalue(), generator))
        try:
            images = load(folder)
        except ValueError as error:
            messages.append(str(error))
            continue
        numbers = original_numbers(images)
        assert len(numbers) + len(damaged_rows(folder)) == SIZE
        assert numbers == sorted(set(numbers))
    assert num_files / 6 < len(messages) < num_files
    assert all(str(tmp_path) in message or "data.label_column" in message for message in messages)
    assert not any("\n" in message for message in messages)


def test_damaged_files_of_a_folder_are_listed_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, generator = tmp_path / "set", random.Random(3)
    (folder / "train").mkdir(parents=True)
    truncated = set(range(0, 100, 3))
    for k in range(100):
        content = encode(k % SIZE)
        length = generator.randrange(len(content)) if k in truncated else len(content)
        (folder / "train" / f"{k:03}.png").write_bytes(content[:length])
    images = load(folder, label_column=None)
    assert original_numbers(images) == [k % SIZE for k in range(100) if k not in truncated]
    rows = damaged_rows(folder)
    assert [Path(row["file"]).name for row in rows] == [f"{k:03}.png" for k in sorted(truncated)]
    assert "(train): 66 images are used; left out: 34 (damaged, listed in " in caplog.text


def write_set_with_one_damaged_image(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    pq.write_table(table([encode(0), b"damaged", encode(2)]), tmp_path / "set" / "train-0.parquet")
    return tmp_path / "set"


def test_on_error_raise_stops_at_the_first_damaged_image(tmp_path: Path) -> None:
    folder = write_set_with_one_damaged_image(tmp_path)
    message = r"contains an image that cannot be read \(number 1: the file is not an image .*\); set data.on_error=skip"
    with pytest.raises(ValueError, match=message):
        load(folder, on_error="raise")
    assert not list((tmp_path / "cache" / "images").glob("*/"))  # the incomplete set was deleted
    assert len(load(folder)) == 2
    with pytest.raises(ValueError, match=message):
        load(folder, on_error="raise")  # also from the cache


def test_a_set_of_mostly_damaged_images_is_refused(tmp_path: Path) -> None:
    folder = write_set_with_one_damaged_image(tmp_path)
    pq.write_table(table([b"damaged", b"damaged", encode(2)]), folder / "train-0.parquet")
    with pytest.raises(
        ValueError, match=r"2 of the 3 images in .* cannot be read, which is more than half; .* number 0 \(the file is"
    ):
        load(folder)


WRONG_TABLES = {
    "text": (
        pa.table({"text": ["a", "b"]}),
        r"contains no images: its columns are text \(string\); a column of images contains the bytes of",
    ),
    "numbers": (
        pa.table({"image": [1, 2], "label": [0, 1]}),
        r"contains no images: its columns are image \(int64\), label \(int64\); a column of images contains",
    ),
    "names": (
        pa.table({"image": ["a.png", "b.png"], "label": [0, 1]}),
        r"contains no images: its column image contains text such as 'a.png', which",
    ),
    "no label": (
        table([encode(0)]).drop_columns(["label"]),
        r"data\.label_column must be null \(there is no column of labels\) for .*, got label; set data\.label",
    ),
    "no rows": (
        table([encode(0)]).slice(0, 0),
        "set cannot be read as images with a split 'train': the split has 0 rows, but it must have at least 1",
    ),
    "label of floats": (
        table([encode(0)]).set_column(1, "label", pa.array([0.5])),
        "data.label_column must contain whole numbers or names, got double in label",
    ),
    "label missing": (
        table([encode(0)]).set_column(1, "label", pa.array([None], pa.int64())),
        "data.label_column=label has no value for 1 images",
    ),
    "label below 0": (
        table([encode(0)]).set_column(1, "label", pa.array([-1])),
        "data.label_column=label must contain labels that are at least 0, got -1",
    ),
}


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_wrong_columns_are_refused(name: str, tmp_path: Path) -> None:
    content, message = WRONG_TABLES[name]
    (tmp_path / "set").mkdir()
    pq.write_table(content, tmp_path / "set" / "train-0.parquet")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "set")


def test_columns_of_bytes_and_of_class_names_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    content = pa.table({"image": [encode(k) for k in range(3)], "label": ["dog", "ant", "dog"]})
    pq.write_table(content, tmp_path / "set" / "train-0.parquet")
    images = load(tmp_path / "set")
    assert original_numbers(images) == [0, 1, 2]
    assert (images.class_names, images.label.tolist()) == (("ant", "dog"), [1, 0, 1])


def test_a_folder_of_text_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("no images\n")
    with pytest.raises(ValueError, match=r"contains no images: its columns are text \(string\)"):
        load(tmp_path / "set")

"""Two hundred damaged files: each is left out and counted, or ends in a sentence; none gives a wrong image."""

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


def stored(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[number]).save(buffer, kind)
    return buffer.getvalue()


def table(contents: list[bytes | None]) -> pa.Table:
    images = pa.array([{"bytes": content, "path": f"{k}.png"} for k, content in enumerate(contents)])
    return pa.table({"image": images, "label": pa.array([k % 3 for k in range(len(contents))])})


def loaded(folder: Path, **settings: object) -> Images:
    settings = {"channels": 1, "resolution": SIDE, "cache_folder": folder.parent / "cache"} | settings
    return ImageStore(None, folder, **settings).load()  # type: ignore[arg-type]


def left_out(folder: Path) -> list[dict[str, str]]:
    """What damaged.csv says of the last set that was built."""
    built = max((folder.parent / "cache" / "images").glob("*/meta.json"), key=lambda path: path.stat().st_mtime_ns)
    if not (path := built.parent / "damaged.csv").exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def matching(images: Images) -> list[int]:
    """The number of the original image that each image is, exactly.  Fails where one is none of them."""
    found = images.gather(np.arange(len(images)))[:, 0].numpy()
    return [next(k for k in range(SIZE) if np.array_equal(PIXELS[k], image)) for image in found]


def changed(content: bytes, randomness: random.Random) -> bytes:
    """The bytes cut, overwritten, with a flipped bit, or with a piece twice."""
    kind, place = randomness.randrange(4), randomness.randrange(1, len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + randomness.randbytes(8) + content[place + 8 :]
    if kind == 2:
        return content[:place] + bytes([content[place] ^ 1 << randomness.randrange(8)]) + content[place + 1 :]
    return content[:place] + content[max(0, place - 16) :]


def broken_images() -> Iterator[bytes | None]:
    """Eighty contents that are no image that can be shown."""
    randomness = random.Random(0)
    yield from (None, b"", b"\0" * 300, b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n")
    for mode in ("I", "F"):
        buffer = io.BytesIO()
        Image.new(mode, (SIDE, SIDE)).save(buffer, "TIFF")
        yield buffer.getvalue()
    for sides in ((60_000, 60_000), (2**31 - 1, 1), (0, 8), (9_000, 10_000)):
        yield b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, *sides, 1, 24, 0, 24, 0, 0, 0, 0)
    while True:
        yield changed(stored(randomness.randrange(SIZE)), randomness)


def test_eighty_damaged_images_among_whole_ones_are_counted_and_no_other_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = broken_images()
    for round_ in range(16):
        folder = tmp_path / f"set{round_}"
        folder.mkdir()
        places = random.Random(round_).sample(range(SIZE), 5)
        contents: list[bytes | None] = [next(broken) if k in places else stored(k) for k in range(SIZE)]
        pq.write_table(table(contents), folder / "train-0.parquet")
        images = loaded(folder)
        assert matching(images) == [k for k in range(SIZE) if k not in places]
        assert images.label.tolist() == [k % 3 for k in range(SIZE) if k not in places]
        rows = left_out(folder)
        assert [int(row["number"]) for row in rows] == sorted(places)
        assert all(row["reason"] and row["file"] == f"{row['number']}.png" for row in rows)
        assert matching(loaded(folder)) == matching(images)
        said = capsys.readouterr().err
        assert said.count(f"{folder} holds 5 images that cannot be read; the other 7 are used") == 2
        assert "is built again" not in said


def test_broken_notes_in_whole_images_are_not_worth_a_warning(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for k in range(SIZE):
        notes = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
        Image.fromarray(PIXELS[k]).save(tmp_path / "set" / f"{k:02}.png", exif=notes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert matching(loaded(tmp_path / "set", label_column=None)) == list(range(SIZE))
    assert [str(warning.message) for warning in caught] == []


def test_a_damaged_jpeg_costs_no_neighbour(tmp_path: Path) -> None:
    randomness = random.Random(1)  # JPEG has no checksums: what still decodes is an image, if not the same one
    whole = np.asarray(Image.open(io.BytesIO(stored(5, "JPEG"))))
    for round_ in range(5):
        folder = tmp_path / f"set{round_}"
        folder.mkdir()
        contents: list[bytes | None] = [
            stored(5, "JPEG") if k % 2 else changed(stored(k, "JPEG"), randomness) for k in range(SIZE)
        ]
        pq.write_table(table(contents), folder / "train-0.parquet")
        images = loaded(folder, label_column=None)
        kept = [k for k in range(SIZE) if k not in {int(row["number"]) for row in left_out(folder)}]
        assert len(images) == len(kept) >= 6
        odd = images.gather(np.array([row for row, number in enumerate(kept) if number % 2]))
        assert np.array_equal(odd[:, 0].numpy(), np.broadcast_to(whole, (6, SIDE, SIDE)))


def test_sixty_damaged_parquet_files_give_a_sentence_or_exactly_their_images(tmp_path: Path) -> None:
    sink = io.BytesIO()
    # Stored plainly: an index flipped in a dictionary would name another whole image, which nothing could notice.
    pq.write_table(table([stored(k) for k in range(SIZE)]), sink, compression="none", use_dictionary=False)
    randomness, sentences = random.Random(2), []
    for round_ in range(60):
        folder = tmp_path / f"set{round_}"
        folder.mkdir()
        (folder / "train-0.parquet").write_bytes(changed(sink.getvalue(), randomness))
        try:
            images = loaded(folder)
        except ValueError as error:
            sentences.append(str(error))
            continue
        found = matching(images)
        assert len(found) + len(left_out(folder)) == SIZE
        assert found == sorted(set(found))
    assert 10 < len(sentences) < 60
    assert all(str(tmp_path) in sentence or "data.label_column" in sentence for sentence in sentences)
    assert not any("\n" in sentence for sentence in sentences)


def test_damaged_files_of_a_folder_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, randomness = tmp_path / "set", random.Random(3)
    (folder / "train").mkdir(parents=True)
    broken = set(range(0, 100, 3))
    for k in range(100):
        content = stored(k % SIZE)
        length = randomness.randrange(len(content)) if k in broken else len(content)
        (folder / "train" / f"{k:03}.png").write_bytes(content[:length])
    images = loaded(folder, label_column=None)
    assert matching(images) == [k % SIZE for k in range(100) if k not in broken]
    rows = left_out(folder)
    assert [Path(row["file"]).name for row in rows] == [f"{k:03}.png" for k in sorted(broken)]
    assert "holds 34 images that cannot be read; the other 66 are used" in capsys.readouterr().err


def one_broken(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    pq.write_table(table([stored(0), b"broken", stored(2)]), tmp_path / "set" / "train-0.parquet")
    return tmp_path / "set"


def test_the_first_damaged_image_ends_the_run_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = one_broken(tmp_path)
    sentence = r"holds an image that cannot be read, near number 1: it is no image .*; data\.on_error=skip leaves"
    with pytest.raises(ValueError, match=sentence):
        loaded(folder, on_error="raise")
    assert not list((tmp_path / "cache" / "images").glob("*/"))  # it ended there, not after the whole set
    assert len(loaded(folder)) == 2
    with pytest.raises(ValueError, match=sentence):
        loaded(folder, on_error="raise")  # from the cache, too


def test_a_set_of_mostly_damaged_images_is_refused(tmp_path: Path) -> None:
    folder = one_broken(tmp_path)
    pq.write_table(table([b"broken", b"broken", stored(2)]), folder / "train-0.parquet")
    with pytest.raises(
        ValueError, match=r"holds 2 images of 3 that cannot be read, more than half; .* number 0: it is"
    ):
        loaded(folder)


WRONG_TABLES = {
    "text": (pa.table({"text": ["a", "b"]}), r"holds no images: its columns are text"),
    "numbers": (pa.table({"image": [1, 2], "label": [0, 1]}), "holds no images: its columns are image, label"),
    "names": (pa.table({"image": ["a.png", "b.png"], "label": [0, 1]}), "holds no images"),
    "no label": (
        table([stored(0)]).drop_columns(["label"]),
        r"must be among \['image'\] .*, got label; .*=null trains",
    ),
    "no rows": (table([stored(0)]).slice(0, 0), "set cannot be read as images with a split 'train'"),
    "label of floats": (
        table([stored(0)]).set_column(1, "label", pa.array([0.5])),
        "data.label_column must hold whole numbers or names, got double in label",
    ),
    "label missing": (
        table([stored(0)]).set_column(1, "label", pa.array([None], pa.int64())),
        "data.label_column=label has no value for 1 images",
    ),
    "label below 0": (
        table([stored(0)]).set_column(1, "label", pa.array([-1])),
        "labels must be at least 0, got -1 in data.label_column=label",
    ),
}


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_wrong_columns_are_said_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = WRONG_TABLES[name]
    (tmp_path / "set").mkdir()
    pq.write_table(content, tmp_path / "set" / "train-0.parquet")
    with pytest.raises(ValueError, match=sentence):
        loaded(tmp_path / "set")


def test_bare_bytes_and_labels_that_are_names_are_understood(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    content = pa.table({"image": [stored(k) for k in range(3)], "label": ["dog", "ant", "dog"]})
    pq.write_table(content, tmp_path / "set" / "train-0.parquet")
    images = loaded(tmp_path / "set")
    assert matching(images) == [0, 1, 2]
    assert (images.class_names, images.label.tolist()) == (("ant", "dog"), [1, 0, 1])


def test_a_folder_of_text_holds_no_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("no images\n")
    with pytest.raises(ValueError, match="holds no images: its columns are text"):
        loaded(tmp_path / "set")

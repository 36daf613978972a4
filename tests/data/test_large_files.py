"""Files of kilobytes that expand to gigabytes, and files that are too large: a sentence or a counted skip."""

import csv
import io
import json
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lab.data import image_files, parquet_checks, table_checks
from diffusion_lab.data.decoding import MAX_PIXELS, DamagedImageError, Preparation
from diffusion_lab.data.image_cache import ImageCache
from diffusion_lab.data.image_store import ImageStore
from support.representatives import with_representatives
from support.time_limit import time_limit


def encoded(level: int = 0, format_name: str = "PNG", size: tuple[int, int] = (4, 4), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, level).save(buffer, format_name, **options)
    return buffer.getvalue()


def load(folder: Path, **settings: Any) -> list[int]:
    settings = {"label_column": None, "cache_folder": folder.parent / "cache"} | settings
    with time_limit(60):
        images = ImageStore(None, folder, channels=1, resolution=4, **settings).load()
    return [int(level) for level in images.gather(np.arange(len(images)))[:, 0, 0, 0]]


def reasons(folder: Path) -> list[str]:
    (file,) = (folder.parent / "cache").rglob("damaged.csv")
    with file.open() as stream:
        return [row["reason"] for row in csv.DictReader(stream)]


def memory() -> int:
    """Return the largest memory that this process has taken, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_repeated(file: Path, content: bytes, num_rows: int) -> None:
    """Write a parquet file of rows with the same content, which a dictionary stores once."""
    indices = pa.array(np.zeros(num_rows, np.int32))
    images = pa.DictionaryArray.from_arrays(indices, pa.array([content], pa.binary()))
    pq.write_table(pa.table({"image": images}), file, compression="zstd", store_schema=False)


def test_a_parquet_file_whose_rows_expand_to_more_than_the_memory_is_refused_without_taking_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    load_small = tmp_path / "small"
    load_small.mkdir()
    write_repeated(load_small / "train.parquet", encoded(7), 3)
    assert load(load_small) == [7, 7, 7]  # also imports the libraries
    write_repeated(tmp_path / "set" / "train.parquet", encoded(7) + bytes(20_000_000), 10_000)  # 200 GB
    assert (tmp_path / "set" / "train.parquet").stat().st_size < 100_000
    before = memory()
    with pytest.raises(ValueError, match=r"train\.parquet must have row groups that take at most [\d.]+ GB"):
        load(tmp_path / "set")
    assert memory() - before < 500_000_000


def test_a_parquet_header_of_too_many_bytes_or_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    image = pa.array([{"bytes": encoded(k) + bytes(1000), "path": None} for k in range(20)])
    pq.write_table(pa.table({"image": image, "label": range(20)}), tmp_path / "set" / "train.parquet")
    monkeypatch.setattr(parquet_checks, "memory_budget", lambda: 20_000)
    with pytest.raises(ValueError, match=r"row groups that take at most 0\.0 GB .* got a row group of at least"):
        load(tmp_path / "set")
    pq.write_table(pa.table({"image": image, "label": range(20)}), tmp_path / "set" / "train.parquet", row_group_size=5)
    assert load(tmp_path / "set") == list(range(20))


def test_other_columns_of_a_parquet_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    indices = pa.array(np.zeros(2000, np.int32))
    caption = pa.DictionaryArray.from_arrays(indices, pa.array([bytes(20_000_000)], pa.binary()))  # 40 GB
    image = pa.array([{"bytes": encoded(k % 200), "path": None} for k in range(2000)])
    table = pa.table({"image": image, "caption": caption, "numbers": [[1]] * 2000})
    pq.write_table(table, tmp_path / "set" / "train.parquet", compression="zstd", store_schema=False)
    before = memory()
    assert load(tmp_path / "set") == [k % 200 for k in range(2000)]
    assert memory() - before < 500_000_000


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_a_large_image_is_left_out_and_counted(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", 10_000)
    contents = [encoded(0), encoded(1) + bytes(20_000), encoded(2)]
    (tmp_path / "set").mkdir()
    if kind == "parquet":
        pq.write_table(pa.table({"image": contents}), tmp_path / "set" / "train.parquet")
    else:
        for number, content in enumerate(contents):
            (tmp_path / "set" / f"{number}.png").write_bytes(content)
    assert load(tmp_path / "set") == [0, 2]
    (reason,) = reasons(tmp_path / "set")
    assert reason.endswith("0.0 GB, more than 0.0 GB")
    with pytest.raises(ValueError, match=r"contains an image that cannot be read \(number 1: .*more than 0\.0 GB"):
        load(tmp_path / "set", on_error="raise")


def tiff_with_tiles(side: int) -> bytes:
    """Return a TIFF file that states the size of tiles in place of the rows and bytes of its strips."""
    content = encoded(0, "TIFF")
    start = content.index(struct.pack("<H", 278), 8)
    assert struct.unpack_from("<H", content, start + 12)[0] == 279
    tiles = b"".join(struct.pack("<HHII", tag, 4, 1, side) for tag in (322, 323))
    return content[:start] + tiles + content[start + 24 :]


def png_with(kind: bytes, content: bytes) -> bytes:
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    image = encoded()
    return image[:33] + chunk + image[33:]


def jpeg_with_scans(number: int, side: int = 64) -> bytes:
    content = encoded(0, "JPEG", size=(side, side))
    start = content.rindex(b"\xff\xda")
    return content[:-2] + content[start:-2] * (number - 1) + content[-2:]


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "png of many pixels": (lambda: png_header(60_000, 60_000), r"3600000000 pixels\) exceeds limit"),
    "png of one very long line": (lambda: png_header(2**31 - 1, 1), r"2147483647 pixels\) exceeds limit"),
    "compressed text in png": (
        lambda: png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 1)),
        "[Dd]ecompressed data too large",
    ),
    "compressed profile in png": (
        lambda: png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(300_000_000), 1)),
        "[Dd]ecompressed data too large",
    ),
    "large tile in tiff": (lambda: tiff_with_tiles(10**5), "a tile states 100000 x 100000 pixels"),
    "scans in jpeg": (lambda: jpeg_with_scans(2000), "the file has 2,000 scans of 64 x 64 pixels, more than 1,000"),
    "scans of a large jpeg": (lambda: jpeg_with_scans(400, side=4096), "scans of 4096 x 4096 pixels, more than 106"),
    "empty chunks in png": (lambda: png_of_chunks(500_000), "too many parts, which take more than 1,000,000 reads"),
    "comments in ppm": (
        lambda: b"P3 900 900 255\n" + b"#\n" * 10**6,
        "PPM file of text with more than .* 1,000 comments",
    ),
    "numbers in ppm": (
        lambda: b"P2 9000 9000 255\n" + b"1 " * 10**8,
        "PPM file of text with more than 20,000,000 bytes",
    ),
    "runs in bmp": (lambda: bmp_of_runs(1_500_000), "too many parts, which take more than 1,000,000 reads"),
}


def png_of_chunks(number: int) -> bytes:
    image = encoded()
    return image[:33] + struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt")) * number + image[33:]


def bmp_of_runs(number: int) -> bytes:
    """Return a BMP file with runs of one pixel each."""
    header = struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, 2 * number, 0, 0, 256, 0)
    return b"BM" + struct.pack("<III", 1078 + 2 * number, 0, 1078) + header + bytes(1024) + b"\x01\x01" * number


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10_000_000))), (b"IEND", b""))
    )


SLOW = {"runs in bmp", "empty chunks in png"}  # after a million reads; the test after this one lowers the limit


@pytest.mark.parametrize("name", with_representatives({name: name for name in BOMBS}, BOMBS.keys() - SLOW))
def test_a_bomb_is_a_damaged_image(name: str) -> None:
    create, message = BOMBS[name]
    content, before = create(), memory()
    with time_limit(20), pytest.raises(DamagedImageError, match=message):
        Preparation(1, 4).decode(content)
    assert memory() - before < 500_000_000


@pytest.mark.parametrize("create", [png_of_chunks, bmp_of_runs])
def test_a_file_of_too_many_parts_is_a_damaged_image(
    create: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_lab.data.decoding.MAX_READS", 10_000)
    with pytest.raises(DamagedImageError, match="too many parts, which take more than 10,000 reads"):
        Preparation(1, 4).decode(create(10_000))


def test_only_the_first_frame_of_an_animation_is_decoded() -> None:
    buffer, frames = io.BytesIO(), [Image.new("L", (4, 4), k) for k in range(1, 250)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert Preparation(1, 4).decode(buffer.getvalue())[0, 0, 0] == 1
    assert MAX_PIXELS == 89_478_485


def write_zip(folder: Path) -> str:
    with (
        zipfile.ZipFile(folder / "train.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("0.png", "w") as file,
    ):
        for _ in range(40):
            file.write(bytes(10_000_000))
    return r"train\.zip must contain files of at most 0\.3 GB, got 0\.4 GB in '0\.png'"


def write_sparse_tar(folder: Path) -> str:
    with tarfile.open(folder / "train.tar", "w") as archive:
        member = tarfile.TarInfo("0.png")
        member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(10**13), "GNU.sparse.map": "0,1"}
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    return r"train\.tar must contain files of at most 0\.3 GB, got 10,000\.0 GB in '0\.png'"


def write_tar_with(name: str, content: bytes) -> Callable[[Path], str]:
    """Return a function that writes an archive with an image and a file with a name, of a few kilobytes."""

    def write(folder: Path) -> str:
        with tarfile.open(folder / "train.tar", "w") as archive:
            for member, part in (("0.png", encoded()), (name, content)):
                header = tarfile.TarInfo(member)
                header.size = len(part)
                archive.addfile(header, io.BytesIO(part))
        return rf"train\.tar must contain images, labels and texts, no compressed files and no arrays, got '{name}'"

    write.__name__ = f"write_tar_with_{name}"
    return write


def write_tar_with_a_long_name(folder: Path) -> str:
    header = tarfile.TarInfo("a")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**12
    (folder / "train.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    with (folder / "train.tar").open("r+b") as file:
        file.truncate(10**12 + 1024)
    return r"train\.tar cannot be read as an uncompressed TAR archive"


def write_zip_of_compressed_csv(folder: Path) -> str:
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.writestr("a/train.csv.gz", zlib.compress(bytes(10**6), wbits=31))
    return r"train\.zip must contain images, labels and texts, no compressed files .*, got 'a/train\.csv\.gz'"


def write_slow_numbers(folder: Path) -> str:
    (folder / "train.csv").write_text("image,label\n")
    (folder / "README.md").write_text(f"---\na: {':'.join(['59'] * 200_000)}\n---\n")
    return r"README\.md must have plain values in its YAML header, but it contains a number of more than 300 digits"


def write_compressed_csv(folder: Path) -> str:
    (folder / "train.csv").write_bytes(zlib.compress(bytes(10**6), wbits=31))
    return r"train\.csv must not be compressed"


def write_sparse_csv(folder: Path) -> str:
    (folder / "train.csv").write_bytes(b"image,label\n")
    with (folder / "train.csv").open("r+b") as file:
        file.truncate(10**12)
    return r"train\.csv must have at most [\d.]+ GB .*, got 1,000\.0 GB"


def write_hdf5(folder: Path) -> str:
    (folder / "train.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    return "read with the module hdf5 of the library datasets, which must be one of parquet"


def write_compressed_arrow(folder: Path) -> str:
    table = pa.table({"image": pa.array([bytes(10**6)])})
    with pa.ipc.new_stream(folder / "a.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_table(table)
    return r"a\.arrow must not be compressed"


def write_wrong_offsets(folder: Path) -> str:
    table = pa.table({"image": pa.array([b"image-1", b"image-2"])})
    with pa.ipc.new_stream(folder / "a.arrow", table.schema) as out:
        out.write_table(table)
    content = (folder / "a.arrow").read_bytes()
    offsets = struct.pack("<iii", 0, 7, 14)
    assert offsets in content
    (folder / "a.arrow").write_bytes(content.replace(offsets, struct.pack("<iii", 0, 7, 2**30)))
    return r"a\.arrow cannot be read as an Arrow stream"


def write_deep_state(folder: Path) -> str:
    (folder / "state.json").write_text("[" * 10**6)
    (folder / "a.arrow").touch()
    return r"state\.json cannot be read: it is not JSON"


WRITERS = (
    *(write_zip, write_sparse_tar, write_compressed_csv, write_sparse_csv, write_hdf5),
    *(write_compressed_arrow, write_wrong_offsets, write_deep_state),
    *(write_tar_with("0.gz", zlib.compress(bytes(10**6), wbits=31)), write_tar_with("0.png.zst", b"")),
    *(write_tar_with("0.npz", b""), write_tar_with("0.pth", b""), write_tar_with("0.ten", b"")),
    *(write_tar_with_a_long_name, write_zip_of_compressed_csv, write_slow_numbers),
)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_table_or_an_archive_that_is_not_safe_to_read_is_refused(write: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    message, before = write(tmp_path / "set"), memory()
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "set")
    assert memory() - before < 500_000_000


def test_decoded_images_that_do_not_fit_on_the_disk_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": [encoded(1)]}), tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match=r"data\.cache_folder must be .* the images take [\d,.]+ GB, and .* are free"):
        ImageStore(None, tmp_path / "set", label_column=None, resolution=10**7, cache_folder=tmp_path / "cache").load()
    table_checks.require_disk(1, tmp_path)


def test_a_tar_archive_of_images_labels_and_texts_is_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "train.tar", "w") as archive:
        for number in range(3):
            for extension, content in (("png", encoded(number)), ("cls", b"1"), ("json", b'{"a": 1}')):
                header = tarfile.TarInfo(f"{'n' * 200}{number}.{extension}")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    assert load(tmp_path / "set", image_column="png", label_column="cls") == [0, 1, 2]


@pytest.mark.parametrize("names", [[1, 2], [None, "a"], [["a"], ["b"]]])
def test_names_of_classes_that_are_no_texts_are_refused(names: list[Any], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    table = pa.table({"image": [{"bytes": encoded(), "path": None}] * 2, "label": [0, 1]})
    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(described, tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match=r"data\.label_column=label must have texts as names of its classes, got \["):
        load(tmp_path / "set", label_column="label")


META = {
    "no integers": {"shape": [1.0, 1, 4, 4]},
    "negative": {"shape": [-1, -1, 4, 4]},
    "huge": {"shape": [10**30, 1, 4, 4]},
    "few sides": {"shape": []},
    "class names": {"class_names": [1]},
    "damage": {"num_damaged": "5"},
    "nested": None,
}


@pytest.mark.parametrize("name", META)
def test_a_damaged_cache_entry_is_built_again(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "0.png").write_bytes(encoded(7))
    assert load(tmp_path / "set") == [7]
    (file,) = (tmp_path / "cache").rglob("meta.json")
    changes = META[name]
    file.write_text("[" * 10**5 if changes is None else json.dumps(json.loads(file.read_text()) | changes))
    assert load(tmp_path / "set") == [7]
    assert json.loads(file.read_text())["shape"] == [1, 1, 4, 4]
    assert ImageCache(tmp_path / "cache").references == tmp_path / "cache" / "references"

"""Folders of images and tables as users have them: each is read as it is meant, or refused with the remedy."""

import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lab.data import decoding
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.selection import Selection

FINGERPRINT = "03172e1589892ce0ffdf741461dfdc8950f78183c963439b377a0b199064749e"
"""Fingerprint that version 0.4.0 computed for a set of four images."""
ORDINARY = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")


def write(folder: Path, *names: str, image_format: str = "PNG") -> Path:
    """Write 4 x 4 images. Their gray levels are 10, 20, ... in the order of the names."""
    for number, name in enumerate(names, start=1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 10 * number).save(folder / name, image_format)
    return folder


def encoded(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


def store(folder: Path, label_column: str | None = "label", **settings: Any) -> ImageStore:
    cache = folder.parent / "cache"
    return ImageStore(None, folder, label_column=label_column, channels=1, resolution=4, cache_folder=cache, **settings)


def content(
    folder: Path, split: str = "train", label_column: str | None = "label", image_root: Path | None = None
) -> list[tuple[int, str]]:
    """Return the gray level and the class name (or label) of each image."""
    images = store(folder, label_column, image_root=image_root).load(split)
    levels, labels = images.gather(np.arange(len(images)))[:, 0, 0, 0].tolist(), images.label.tolist()
    return [
        (level, images.class_names[k] if images.class_names else str(k))
        for level, k in zip(levels, labels, strict=True)
    ]


LAYOUTS = {
    "class folders": (ORDINARY, "cat cat dog dog"),
    "a stray image beside class folders": ((*ORDINARY, "cover.png"), "cat cat dog dog"),
    "a single class": (("cat/0.png", "cat/1.png"), "cat cat"),
    "folders within class folders": (("cat/1/0.png", "cat/2/0.png", "dog/1/0.png"), "cat cat dog"),
    "folders within some class folders": (("cat/0.png", "dog/husky/0.png", "dog/pug/0.png"), "cat dog dog"),
    "classes below groups": (("pets/cat/0.png", "pets/dog/0.png", "other/car/0.png"), "car cat dog"),
    "a folder around class folders": (("pets/cat/0.png", "pets/dog/0.png"), "cat dog"),
    "a folder around classes and splits": (("a/train/cat/0.png", "a/train/dog/0.png", "a/val/dog/1.png"), "cat dog"),
    "classes named train and test": (("bus/0.png", "test/0.png", "train/0.png", "val/0.png"), "bus test train val"),
    "a class that contains the word train": (("steam train/0.png", "ship/0.png"), "ship steam train"),
    "a class named train in splits": (("train/test/0.png", "train/train/0.png", "val/test/1.png"), "test train"),
    "splits within class folders": (("cat/train/0.png", "dog/train/0.png", "dog/test/0.png"), "cat dog"),
    "file names that contain test": (("cat/0.png", "cat/crash test 1.png", "dog/train_1.png"), "cat cat dog"),
    "an extension in mixed case": (("cat/0.Png", "dog/1.JpG"), "cat dog"),
    "a file without an extension": (("cat/0", "dog/1.png"), "cat dog"),
    "system folders": ((*ORDINARY, "__MACOSX/cat/0.png", "dog/.ipynb/0.png", "@eaDir/x/0.png"), "cat cat dog dog"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_classes_of_a_folder_are_the_expected_ones(name: str, tmp_path: Path) -> None:
    names, expected = LAYOUTS[name]
    write(tmp_path / "set", *names)
    for file in ("cat/.DS_Store", "Thumbs.db", "._0.png", "desktop.ini"):
        (tmp_path / "set" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / file).write_bytes(b"x")
    classes = [name for _, name in sorted(content(tmp_path / "set"), key=lambda item: item[1])]
    assert " ".join(classes) == expected


def left_out(folder: Path, caplog: pytest.LogCaptureFixture, **settings: object) -> str:
    """Return the reasons in the report about the train split."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    store(folder, **settings).load()  # type: ignore[arg-type]
    (report,) = [message for message in caplog.messages if message.startswith(f"{folder} (train): ")]
    return report.partition("(train): ")[2]


def test_the_number_of_used_and_left_out_images_is_reported_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "set", *ORDINARY)
    assert left_out(folder, caplog) == "4 images are used in 2 classes; no image is left out."
    write(folder, "cover.png", "__MACOSX/cat/0.png", "cat/.hidden.png")
    (folder / "cat" / "2.png").write_bytes(b"no image")
    (folder / "cat" / "2.jxl").write_bytes(b"\xff\x0a")
    (folder / "LICENSE").write_text("free")
    (folder / "dog" / "2.png").symlink_to("/nowhere/2.png")
    assert left_out(folder, caplog, selection=Selection(1, "dog", 1)) == (
        "1 image is used in 1 of 2 classes; left out: 1 (unknown type of file), 2 (hidden or in a system folder), "
        "1 (extension .jxl), 1 (link to a missing file), 1 (outside of the class folders), "
        f"1 (damaged, listed in {next((tmp_path / 'cache').rglob('damaged.csv'))}), "
        "1 (held out by data.num_held_out), 1 (other classes than data.classes), 1 (above data.max_images)."
    )


def test_files_outside_of_the_split_folders_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(
        tmp_path / "set", "train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "train/1.png", "more/0.png"
    )
    report = left_out(folder, caplog)
    assert "1 (outside of the class folders), 1 (not in test, train, which are read as splits)" in report
    assert report.startswith("2 images are used in 2 classes")
    assert left_out(folder, caplog, label_column=None).startswith("3 images are used; left out: 1 (not in test, train")


def test_a_linked_class_folder_is_used_and_a_broken_link_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "set", *ORDINARY)
    (folder / "emu").symlink_to(write(tmp_path / "elsewhere", "0.png"), target_is_directory=True)
    (folder / "fox").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    (folder / "cat" / "again").symlink_to(folder, target_is_directory=True)  # a cycle
    assert [name for _, name in content(folder)] == ["cat", "cat", "dog", "dog", "emu"]
    assert "left out: 1 (link to a missing file)" in left_out(folder, caplog)


def test_an_empty_class_folder_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "set", *ORDINARY)
    (folder / "bird").mkdir()
    assert left_out(folder, caplog) == "4 images are used in 2 classes; left out: 1 (empty folder)."


def test_avif_and_heic_images_are_used(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", *ORDINARY)
    write(folder, "cat/2.avif", image_format="AVIF")
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 64), (200, 200, 200))).save(folder / "dog" / "2.HEIC")
    levels = content(folder)
    assert [name for _, name in levels] == ["cat"] * 3 + ["dog"] * 3
    assert levels[2][0] == pytest.approx(10, abs=2)
    assert levels[5][0] == pytest.approx(200, abs=2)


def test_a_heic_image_without_its_package_is_damaged_and_the_reason_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "set", *ORDINARY)
    (folder / "cat" / "2.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
    monkeypatch.setattr(decoding, "FORMATS", tuple(name for name in decoding.FORMATS if name != "HEIF"))
    assert len(content(folder)) == 4
    (listed,) = (tmp_path / "cache" / "images").glob("*/damaged.csv")
    assert "HEIC files need the package pillow-heif" in listed.read_text()


NO_CLASSES = {
    "one class folder": (("0.png", "1.png"), r"but it contains 2 images directly inside; data=folder, or data\.label"),
    "one image": (("0.png",), r"it contains 1 image directly inside; .* must be the folder that contains it\."),
    "mostly stray images": (("0.png", "1.png", "thumbs/0.png"), "it contains 2 images directly inside"),
    "splits without classes": (
        ("train/0.png", "test/0.png"),
        "directly in the folders test, train, which are read as splits; .* as classes, move them to a folder train",
    ),
}


@pytest.mark.parametrize("name", NO_CLASSES)
def test_a_folder_without_class_folders_is_refused_with_the_form_that_is_needed(name: str, tmp_path: Path) -> None:
    names, message = NO_CLASSES[name]
    folder = write(tmp_path / "set", *names)
    needed = rf"data\.path={re.escape(str(folder))} must contain class folders \(CLASS/IMAGE or train/CLASS/IMAGE\), "
    with pytest.raises(ValueError, match=f"{needed}.*{message}"):
        store(folder).locate()
    assert len(content(folder, label_column=None)) == sum(not name.startswith("test") for name in names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jxl", r"must contain images or parquet files, but it contains only 1 files \(extension \.jxl\)\."),
        (".hidden/0.png", "contains only hidden files"),
    ],
)
def test_a_folder_without_images_is_refused_with_what_was_found(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        store(write(tmp_path / "set", name)).load()


def test_a_split_that_a_folder_lacks_is_refused_with_its_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "train/cat/0.png", "validation/cat/0.png")
    with pytest.raises(ValueError, match=r"with a split 'test': its splits are train, validation\."):
        store(folder).load("test")
    assert store(folder).splits() == ["train", "validation"]


def write_table(folder: Path, name: str, **columns: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return folder


def test_names_of_classes_have_one_numbering_for_all_splits(tmp_path: Path) -> None:
    images = [encoded(level) for level in (10, 20, 30)]
    folder = write_table(tmp_path / "set", "train-0.parquet", image=images, label=["emu", "cat", "dog"])
    write_table(folder, "test-0.parquet", image=images, label=["dog", "emu", "bee"])
    train, test = store(folder).load("train"), store(folder).load("test")
    assert (train.class_names, train.label.tolist()) == (("cat", "dog", "emu"), [2, 0, 1])
    assert (test.class_names, test.label.tolist()) == (("cat", "dog", "emu", "bee"), [1, 2, 3])


def test_class_folders_have_one_numbering_for_all_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "train/cat/0.png", "train/emu/0.png", "test/dog/0.png", "test/emu/0.png")
    assert store(folder).load("train").label.tolist() == [0, 2]
    assert store(folder).load("test").label.tolist() == [1, 2]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_with_paths_of_images_has_their_images_and_its_labels(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "set", "images/0.png", "images/1.png", "images/2.png")
    paths, label = ["images/2.png", "images/0.png"], ["b", "a"]
    if suffix == "csv":
        rows = [",".join(row) for row in zip(["image", *paths], ["label", *label], strict=True)]
        (folder / "train.csv").write_text("\n".join(rows))
    else:
        write_table(folder, "train.parquet", image=paths, label=label)
    assert content(folder) == [(30, "b"), (10, "a")]
    assert "2 images are used in 2 classes; left out: 1 (image file that no table contains)" in left_out(folder, caplog)


def test_paths_may_be_relative_to_the_table_or_absolute_below_image_root(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "data/0.png", "data/1.png")
    write_table(
        folder / "data", "train.parquet", image=["1.png", None, "missing.png", "0.png", "0.png"], label=range(5)
    )
    assert content(folder) == [(20, "0"), (10, "3"), (10, "4")]
    absolute = write_table(tmp_path / "other", "train.parquet", image=[str(folder / "data" / "1.png")], label=[3])
    with pytest.raises(ValueError, match=r"names other places, such as .*1\.png; data\.image_root=FOLDER allows"):
        content(absolute)
    assert content(absolute, image_root=folder) == [(20, "3")]


def test_a_table_of_bytes_has_its_images(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "set", "images.parquet", image=[encoded(10), encoded(20)], label=[1, 0])
    assert content(folder) == [(10, "1"), (20, "0")]


@pytest.mark.parametrize("num_splits", [1, 2])
def test_a_set_of_save_to_disk_is_read(num_splits: int, tmp_path: Path) -> None:
    import datasets

    rows = [{"bytes": encoded(level), "path": None} for level in (10, 20)]
    split = datasets.Dataset.from_dict({"image": rows, "label": [1, 0]}).cast_column("image", datasets.Image())
    saved = split if num_splits == 1 else datasets.DatasetDict(train=split, test=split.select([1]))
    saved.save_to_disk(tmp_path / "set")
    assert content(tmp_path / "set") == [(10, "1"), (20, "0")]
    assert store(tmp_path / "set").splits() == ["train", "test"][:num_splits]
    if num_splits == 2:
        assert content(tmp_path / "set", "test") == [(20, "0")]
    split.select([]).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="the split has 0 rows, but it must have at least 1"):
        store(tmp_path / "empty").load()


def test_one_image_is_a_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "set", "0.png")
    assert content(folder, label_column=None) == [(10, "0")]
    assert left_out(folder, caplog, label_column=None) == "1 image is used; no image is left out."


def test_classes_are_selected_by_names_and_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "3/0.png", "7/0.png", "cat/0.png")
    for classes, expected in (("cat", ["cat"]), ([7], ["7"]), ([0, "cat"], ["3", "cat"])):
        images = store(folder, selection=Selection(classes=classes)).load()  # type: ignore[arg-type]
        assert [images.class_names[k] for k in images.label.tolist()] == expected
    with pytest.raises(
        ValueError, match=r"data\.classes must be among 3, 7, cat, got 8; for example data\.classes=\[3\]"
    ):
        store(folder, selection=Selection(classes=[8])).load()
    write(tmp_path / "names", "Red cats/0.png", "dogs/0.png")
    with pytest.raises(
        ValueError, match=r"perhaps you mean 'data\.classes=\[dogs,Red cats\]'; data\.classes=null uses all"
    ):
        store(tmp_path / "names", selection=Selection(classes=["dogs", "red cat"])).load()
    table = write_table(tmp_path / "table", "train.parquet", image=[encoded(10), encoded(20)], label=[1, 0])
    assert len(store(table, selection=Selection(classes=[1])).load()) == 1
    with pytest.raises(
        ValueError, match=r"among 0 to 1 \(the classes have no names\), got cat; .* data\.classes=\[0\]"
    ):
        store(table, selection=Selection(classes="cat")).load()


def test_the_cache_entries_of_ordinary_folders_have_the_keys_of_earlier_versions(tmp_path: Path) -> None:
    plain = {
        "classes": (*ORDINARY, "notes.txt"), "splits": ("train/cat/0.png", "train/dog/0.png", "test/cat/test_1.png"),
        "groups": ("pets/cat/0.png", "pets/dog/0.png"), "flat": ("0.png", "1.JPG"), "around": ("a/train/0.png",),
    }  # fmt: skip
    for name, names in plain.items():
        label_column = None if name in ("flat", "around") else "label"
        assert store(write(tmp_path / name, *names), label_column).source.layout("train") == []
    changed = {
        "avif": ("cat/0.avif", "dog/0.png"), "words": ("cat/0.png", "cat/test 1.png"), "case": ("a/0.Png", "b/0.png"),
        "merged": ("cat/1/0.png", "dog/1/0.png"), "inside": ("cat/train/0.png", "dog/train/0.png"),
    }  # fmt: skip
    for name, names in changed.items():
        assert len(store(write(tmp_path / name, *names)).source.layout("train")) == 1


def test_the_pixels_and_labels_of_a_folder_have_the_fingerprint_of_earlier_versions(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "train/dog/0.png", "train/a cat/1.PNG", "train/cat-2/2.png", "train/cat/3.bmp")
    assert content(folder) == [(20, "a cat"), (30, "cat-2"), (40, "cat"), (10, "dog")]
    assert store(folder).load().fingerprint == FINGERPRINT
    assert os.listdir(tmp_path / "cache" / "images")


def test_original_sizes_are_read_upright_and_without_damaged_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "cat/0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("L", (30, 20)).save(folder / "cat" / "1.jpg", exif=exif)
    (folder / "cat" / "2.png").write_bytes(b"damaged")
    assert store(folder).original_sizes().tolist() == [[4, 4], [20, 30]]
    assert store(folder).original_sizes(max_images=1).tolist() == [[4, 4]]
    table = write_table(tmp_path / "table", "train.parquet", image=[encoded(1), b"no image"], label=[0, 0])
    assert store(table).original_sizes().tolist() == [[4, 4]]

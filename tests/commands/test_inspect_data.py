"""`src/inspect_data.py`, in separate processes."""

import csv
import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from support import commands


def run(*arguments: str) -> CompletedProcess[str]:
    return commands.run("inspect_data.py", *arguments)


def write_images(folder: Path) -> None:
    """Write two classes of 16 images in train and 4 in test.

    The train split has an exact copy and a flipped near copy; the test split has an exact copy of an image of train.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for name in ("cat", "dog"):
            pixels = generator.integers(20, 200, (count, 16, 16, 3), dtype=np.uint8)
            if (split, name) == ("train", "dog"):
                pixels[9], pixels[10] = pixels[2], pixels[3, :, ::-1] + 1
            if (split, name) == ("test", "cat"):
                first = np.asarray(Image.open(folder / "train" / "cat" / "05.png"))
                pixels[1] = first
            (folder / split / name).mkdir(parents=True)
            for number, picture in enumerate(pixels):
                Image.fromarray(picture).save(folder / split / name / f"{number:02}.png")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_the_splits_of_a_folder_are_reported_in_files_and_images(tmp_path: Path) -> None:
    write_images(tmp_path / "set")
    done = run(
        "-m", "data=class_folders", f"data.path={tmp_path / 'set'}", "data.resolution=16", "num_rows=5",
        "split=train,test", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder, of_test = tmp_path / "split-train", tmp_path / "split-test"
    report = json.loads((folder / "report.json").read_text())
    assert (report["num_images"], report["class_counts"]) == (32, {"cat": 16, "dog": 16})
    assert (report["channels"], report["height"], report["width"]) == (3, 16, 16)
    assert (report["duplicates"]["same_bytes"], report["duplicates"]["near_pairs"]) == (1, 1)
    assert (report["overlap"]["num_images"], report["overlap"]["same_bytes"], report["overlap"]["near"]) == (8, 1, 0)
    with (folder / "duplicates.csv").open() as file:
        found = [*csv.DictReader(file)]
    root = tmp_path / "set"
    assert [(row["file"], row["other_file"]) for row in found] == [
        (str(root / "train/dog/02.png"), str(root / "train/dog/09.png")),
        (str(root / "train/dog/03.png"), str(root / "train/dog/10.png")),
        (str(root / "train/cat/05.png"), str(root / "test/cat/01.png")),
    ]
    assert [[*row.values()][:7] for row in found] == [
        ["same_bytes", "train", "18", "dog", "train", "25", "dog"],
        ["mirrored", "train", "19", "dog", "train", "26", "dog"],
        ["same_bytes", "train", "5", "cat", "test", "1", "cat"],
    ]
    tile = 4 * 16 + 2
    assert size(folder / "contact_sheet.png") == (2 * tile + 2, 16 + 5 * tile + 2)
    assert size(folder / "duplicates.png") == (6 * (2 * tile + 2), 32 + tile + 2)
    assert "of 8 images of test, exact copies: 1, near duplicates: 0" in done.stdout
    assert re.fullmatch(
        r"(note: .*set \((train|test)\): (32|8) images are used in 2 classes; no image is left out\.\n){2,3}",
        done.stderr,
    )
    sizes = "original sizes of 32 images: width 16, height 16; 0 images with a shorter side below data"
    assert sizes in done.stdout
    assert json.loads((of_test / "report.json").read_text())["overlap"] is None
    assert not (of_test / "duplicates.png").exists()


@pytest.mark.full
def test_a_set_without_test_split_is_reported_with_the_number_of_compared_images(tmp_path: Path) -> None:
    done = run("num_rows=2", "data.max_images=600", "near_duplicates.max_compared=50", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"note: .*fashion_mini \(train\): 600 images are used in 10 classes; left out: .*\.", done.stderr.strip()
    )
    side = {"smallest": 28, "median": 28, "largest": 28}
    sizes = {"width": side, "height": side, "resolution": 28, "num_below_resolution": 0}
    assert "only 50 of the 600 images of train were searched for near duplicates" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["num_images"], report["overlap"], report["duplicates"]["num_compared"]) == (600, None, 50)
    assert report["original_sizes"] == {"num_images": 10_000} | sizes
    assert sum(report["class_counts"].values()) == 600
    assert size(tmp_path / "contact_sheet.png") == (10 * 58 + 2, 16 + 2 * 58 + 2)


def test_a_folder_without_class_folders_is_refused_with_the_form_that_is_needed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "set" / "0.png")
    done = run("data=class_folders", f"data.path={tmp_path / 'set'}", f"hydra.run.dir={tmp_path / 'run'}")
    assert re.fullmatch(
        r"error: .* must contain class folders .* 1 image directly inside; data=folder, .*", done.stderr.strip()
    )


OTHER_WRONG_SETTINGS: list[tuple[str, str]] = [
    (
        "split=held_out",
        r"`split` must be one of train .*, got held_out; data\.num_held_out=NUMBER holds out .* for it\.",
    ),
    ("num_pairs=true", r"num_pairs must be a whole number of at least 1, got True\."),
    ("seed=-1", r"seed must be a whole number in 0\.\.2\^63 - 1, got -1\."),
    ("near_duplicates.max_ratio=2", r"near_duplicates.max_ratio must be in \(0, 1\), got 2\."),
    ("near_duplicates.neighbor=few", r"near_duplicates\.neighbor must be a whole number, got few\."),
    ("data.resolution=28x28", r"data\.resolution must be a whole number, got 28x28\."),
    ("data.classes=cats", r"data\.classes must be among .*, got cats; for example data\.classes=\[Coat\]; .*"),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split=nope", r"`split` must be one of train \(the splits of the data set\), got nope\."),
        ("against=test", r"`against` must be one of train \(the splits of the data set\), got test\."),
        ("split=null", r"`split` must be the name of a split, such as train, got null\."),
        ("against=train", r"`against` must be a split other than split=train, got train\."),
        ("num_rows=0", r"num_rows must be a whole number of at least 1, got 0\."),
        ("near_duplicates=null", r"near_duplicates must not be null; .*"),
        ("data.label_column=klass", r"data\.label_column must be one of .*, got klass; .*"),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_WRONG_SETTINGS),
    ],
    ids=lambda value: value if "\\" not in value else "",
)
def test_a_wrong_setting_raises_an_error_of_one_line(override: str, message: str, tmp_path: Path) -> None:
    done = run(override, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert re.fullmatch(f"error: {message}", done.stderr.strip()), done.stderr
    assert not (tmp_path / "run").exists()

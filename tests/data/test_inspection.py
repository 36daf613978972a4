"""Inspection of sets with known content: statistics, files and contact sheets."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lab.data.duplicates import NearDuplicates, Pair
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.data.inspection import class_counts, file_names, inspect, size_statistics
from diffusion_lab.data.inspection_report import FoundPair, Split, as_dict, list_pairs, print_report, write_report
from diffusion_lab.data.inspection_sheets import contact_sheet, duplicate_sheet
from diffusion_lab.data.selection import Selection

SHAPE = (3, 12, 10)


def pixels(count: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Different images of noise: uint8 [count, *shape] in 20..200."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 201, (count, *shape), dtype=torch.uint8, generator=generator)


def images(content: Tensor, names: tuple[str, ...] = ()) -> Images:
    """Set with the labels 0, 1, ..., one per name, repeated."""
    return Images(content, torch.arange(len(content)) % max(1, len(names)), names)


def report_of(split: Split, other: Split | None = None, search: NearDuplicates | None = None) -> dict[str, object]:
    search = search or NearDuplicates()
    inspected = inspect(split.images, other.images if other else None, search)
    return as_dict(inspected, split, other, search)


def test_shape_and_pixel_statistics_are_those_of_all_images() -> None:
    content = pixels(600)
    content[:, 1] = 0
    content[599, 0, 3:7] = 255
    found = inspect(images(content))
    assert (found.num_images, found.channels, found.height, found.width) == (600, 3, 12, 10)
    for channel, values in zip(content.numpy().swapaxes(0, 1), found.values, strict=True):
        assert (values.smallest, values.largest) == (channel.min(), channel.max())
        assert values.mean == pytest.approx(channel.mean(), abs=1e-9)
        assert values.std == pytest.approx(channel.std(), abs=1e-9)
        assert values.share_0 == pytest.approx((channel == 0).mean(), abs=1e-12)
        assert values.share_255 == pytest.approx((channel == 255).mean(), abs=1e-12)
    assert [values.share_0 for values in found.values] == [0, 1, 0]


def test_images_with_a_single_color_are_constant() -> None:
    content = pixels(300)
    content[280] = 77
    content[5] = torch.tensor([10, 20, 30])[:, None, None]
    content[6, :2] = 40
    assert inspect(images(content)).constant == (5, 280)


def test_counts_include_empty_classes_and_classes_without_a_name() -> None:
    label = torch.tensor([2, 0, 2, 2, 3])
    assert class_counts(Images(pixels(5), label, ("a", "b", "c", "d"))) == {"a": 1, "b": 0, "c": 3, "d": 1}
    assert class_counts(Images(pixels(5), label, ("a", "b", "c"))) == {"a": 1, "b": 0, "c": 3, "3": 1}
    assert class_counts(Images(pixels(5), label)) == {"0": 1, "2": 3, "3": 1}
    assert class_counts(Images(pixels(5), torch.zeros(5, dtype=torch.int64))) == {}


def test_exact_copies_are_reported_once_and_not_as_near_duplicates() -> None:
    content = pixels(400)
    content[300] = content[399] = content[2]
    content[50] = content[40]
    content[350] = content[340] + 1
    found = inspect(images(content)).duplicates
    assert found.same_bytes == (Pair(2, 300), Pair(2, 399), Pair(40, 50))
    assert [(pair.first, pair.second, pair.kind) for pair in found.near] == [(340, 350, "near")]
    assert found.num_compared == 400


def test_duplicates_in_another_set_are_reported_with_both_numbers() -> None:
    content, others = pixels(300), pixels(80, seed=1)
    others[70], others[71] = content[290], content[290]
    others[5], others[6] = content[200].flip(-1) + 1, content[100] + 1
    content[101] = content[100]
    others[50] = others[49]
    found = inspect(images(content), images(others)).overlap
    assert found is not None
    assert found.same_bytes == (Pair(290, 70), Pair(290, 71))
    by_second = sorted((pair.second, pair.kind, pair.first) for pair in found.near)
    assert [number[:2] for number in by_second] == [(5, "mirrored"), (6, "near")]
    assert by_second[0][2] == 200
    assert by_second[1][2] in (100, 101)  # the same bytes
    assert (found.num_others, found.num_others_compared, found.num_compared) == (80, 80, 300)


def test_near_duplicates_are_only_searched_among_the_chosen_images() -> None:
    search = NearDuplicates(max_compared=100, seed=5)
    chosen = sorted(search.choose(300).tolist())
    left_out = sorted(set(range(300)) - set(chosen))
    content = pixels(300)
    content[chosen[90]] = content[chosen[3]] + 1
    content[left_out[90]] = content[left_out[3]] + 1
    content[left_out[50]] = content[left_out[10]]
    found = inspect(images(content), images(content[:250]), search)
    assert found.duplicates.num_compared == 100
    assert [(pair.first, pair.second) for pair in found.duplicates.near] == [(chosen[3], chosen[90])]
    assert found.duplicates.same_bytes == (Pair(left_out[10], left_out[50]),)
    assert found.overlap is not None
    assert (found.overlap.num_others, found.overlap.num_others_compared) == (250, 100)
    assert inspect(images(content), None, NearDuplicates(max_compared=0)).duplicates.near == ()


def test_near_duplicates_of_downsampled_images_have_the_numbers_of_the_images() -> None:
    content = pixels(520, shape=(1, 40, 36)) // 8
    content += torch.nn.functional.interpolate(pixels(520, seed=1, shape=(1, 5, 4)), (40, 36), mode="nearest") // 2
    content[510] = content[4].flip(-1) + 1
    near = inspect(images(content)).duplicates.near
    assert [(pair.first, pair.second, pair.kind) for pair in near] == [(4, 510, "mirrored")]
    few = NearDuplicates(max_compared=1)  # a batch of 256 then holds no image that is compared
    assert inspect(images(content), None, few).duplicates.num_compared == 1


def test_sets_that_cannot_be_inspected_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a set must contain at least 1 image to be inspected, got 0\."):
        inspect(images(pixels(0)))
    with pytest.raises(ValueError, match=r"both sets must have the same shape, got \(3, 12, 10\) and \(3, 12, 9\)\."):
        inspect(images(pixels(4)), images(pixels(4, shape=(3, 12, 9))))


def test_the_report_counts_exact_copies_near_duplicates_and_pairs_with_two_classes(tmp_path: Path) -> None:
    content, others = pixels(100), pixels(30, seed=1)
    content[21], content[31] = content[20], content[20]
    content[62], others[7], others[8] = content[50] // 4, content[90], content[91] + 1
    names = ("a", "b")
    split, other = (
        Split("train", images(content, names)),
        Split("test", Images(others, 1 - torch.arange(30) % 2, names)),
    )
    inspected = inspect(split.images, other.images)
    summary, found = as_dict(inspected, split, other, NearDuplicates()), list_pairs(inspected, split, other)
    folder = tmp_path / "new" / "folder"
    write_report(summary, found, folder, {"train": {20: "b/20.png", 21: "21.png"}})
    report = json.loads((folder / "report.json").read_text())
    assert report["duplicates"] == {
        "same_bytes": 2, "same_bytes_groups": 1, "near_pairs": 1, "pairs_of_two_classes": 2, "num_compared": 100,
    }  # fmt: skip
    assert report["overlap"] == {
        "split": "test", "num_images": 30, "same_bytes": 1, "near": 1, "near_pairs": 1, "num_compared": 30,
    }  # fmt: skip
    assert (report["split"], report["num_images"], report["class_counts"]) == ("train", 100, {"a": 50, "b": 50})
    assert report["near_duplicates"]["max_ratio"] == 0.4
    with (folder / "duplicates.csv").open() as file:
        header, *rows = csv.reader(file)
    assert ",".join(header) == (
        "kind,split,image,class,other_split,other_image,other_class,correlation,ratio,file,other_file"
    )
    assert [" ".join(row[:7]) for row in rows] == [
        "same_bytes train 20 a train 21 b", "same_bytes train 20 a train 31 b", "near train 50 a train 62 a",
        "same_bytes train 90 a test 7 a", "near train 91 b test 8 b",
    ]  # fmt: skip
    assert rows[0][7:] == ["1.0000", "0.0000", "b/20.png", "21.png"]
    assert rows[1][9:] == ["b/20.png", ""]  # the name of image 31 is not given
    assert 0 < float(rows[2][8]) < 0.4


def test_file_names_are_those_of_the_selected_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for k in range(12):
        Image.new("L", (8, 8), 20 * k).save(tmp_path / "set" / f"{k:02}.png")
    (tmp_path / "set" / "03.png").write_bytes(b"no image")
    store = ImageStore(
        None, tmp_path / "set", label_column=None, channels=1, resolution=8, cache_folder=tmp_path / "cache",
        selection=Selection(num_held_out=4),
    )  # fmt: skip
    for split, size in (("train", 7), ("held_out", 4)):
        loaded = store.load(split)
        assert len(loaded) == size
        numbers = list(range(1, size))  # not all of them
        named = file_names(store, split, numbers)
        levels = [int(loaded.gather(np.array([k]))[0, 0, 0, 0]) for k in numbers]
        assert named == {
            k: str(tmp_path / "set" / f"{level // 20:02}.png") for k, level in zip(numbers, levels, strict=True)
        }


def test_an_image_with_two_near_duplicates_is_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    content, others = pixels(100), pixels(30, seed=1)
    content[4] = content[60].flip(-1) + 2
    others[3] = content[60] + 1
    report = report_of(Split("train", images(content)), Split("test", images(others)))
    overlap = report["overlap"]
    assert isinstance(overlap, dict)
    assert (overlap["near"], overlap["near_pairs"]) == (1, 2)
    print_report(report)
    assert "of 30 images of test, exact copies: 0, near duplicates: 1" in capsys.readouterr().out


def test_the_printed_report_states_omissions_and_prints_class_names_verbatim(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("[/red]", "a:smile:", "long" * 20, *map(str, range(39)))
    split, other = Split("train", images(pixels(60), names)), Split("test", images(pixels(50, seed=1), names))
    print_report(report_of(split, other, NearDuplicates(max_compared=40)))
    output = capsys.readouterr().out
    assert "train: 60 images of 3 x 12 x 10" in output
    assert "only 40 of the 60 images of train were searched for near duplicates" in output
    assert "only 40 of the 50 images of test were searched for near duplicates" in output
    assert "of 50 images of test, exact copies: 0, near duplicates: 0" in output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    assert rows[3:6] == [["[/red]", "2", "3.33%"], ["a:smile:", "2", "3.33%"], ["long" * 20, "2", "3.33%"]]
    assert rows[-1] == ["and 12 more", "1 to 2", ""]
    print_report(report_of(split))
    output = capsys.readouterr().out
    assert "only" not in output
    assert "duplicates.csv" not in output


def test_a_contact_sheet_has_a_column_for_each_class() -> None:
    shades = torch.tensor([40, 120, 220], dtype=torch.uint8)
    label = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    content = shades[label][:, None, None, None].expand(8, 1, 14, 14)
    sheet = contact_sheet(Images(content, label, ("a", "b", "c")), num_rows=3, seed=0)
    assert sheet.shape == (16 + 3 * 58 + 2, 3 * 58 + 2, 3)
    centers = sheet[16 + 2 + 28 :: 58, 2 + 28 :: 58, 0]
    assert centers.tolist() == [[40, 120, 220], [0, 120, 220], [0, 0, 220]]
    assert sheet[:16].max() == 255
    assert contact_sheet(Images(content, label), num_rows=3, seed=0).shape == sheet.shape
    many = contact_sheet(images(pixels(30), tuple(map(str, range(30)))), num_rows=1, seed=0)
    assert many.shape[1] == 20 * (6 * SHAPE[2] + 2) + 2


def test_a_long_class_name_is_wrapped_above_its_column() -> None:
    names = ("red cars (old)", "a", "incomprehensibilities")
    sheet = contact_sheet(images(pixels(6, shape=(1, 14, 14)), names), num_rows=2, seed=0)
    assert sheet.shape == (3 * 16 + 2 * 58 + 2, 3 * 58 + 2, 3)
    header = sheet[: 3 * 16, :, 0].reshape(3, 16, -1).max(axis=1)
    has_text = [[bool(line[start : start + 58].max()) for start in (2, 60, 118)] for line in header]
    assert has_text == [[True, True, True], [True, False, True], [False, False, True]]
    assert [header[:, start - 1].max() for start in (60, 118, 176)] == [0, 0, 0]  # no name reaches the next column


@pytest.mark.parametrize(
    ("num_copies", "text"),
    [(0, "0 exact copies of 0 images"), (1, "1 exact copy of 1 image"), (2, "2 exact copies of 1 image")],
)
def test_the_printed_report_counts_copies_and_names_the_file_that_lists_them(
    num_copies: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = pixels(100)
    content[1 : 1 + num_copies] = content[0]
    print_report(report_of(Split("train", images(content))))
    output = capsys.readouterr().out
    assert f"duplicates within train: {text}, and 0 pairs of near duplicates; exact and near pairs of" in output
    assert ("duplicates.csv lists each of these pairs with the files of both images" in output) == (num_copies > 0)


def test_widths_and_heights_are_ordered_separately_and_sizes_are_compared_by_their_shorter_side(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = np.array([[640, 480], [4000, 50], [64, 64], [100, 32], [300, 300]])
    found = size_statistics(sizes, resolution=64)
    assert found == {
        "num_images": 5, "width": {"smallest": 64, "median": 300, "largest": 4000},
        "height": {"smallest": 32, "median": 64, "largest": 480}, "resolution": 64, "num_below_resolution": 2,
    }  # fmt: skip
    print_report(report_of(Split("train", images(pixels(60)))) | {"original_sizes": found})
    line = "original sizes of 5 images: width 64 to 4000 (median 300), height 32 to 480 (median 64); 2 images with a"
    assert f"{line} shorter side below data.resolution=64" in capsys.readouterr().out
    assert size_statistics(sizes[:0], resolution=64) is None


def test_a_contact_sheet_without_classes_has_ten_columns_and_depends_on_the_seed() -> None:
    plain = images(pixels(70, shape=(1, 28, 28)))
    sheet = contact_sheet(plain, num_rows=3, seed=0)
    assert sheet.shape == (3 * 58 + 2, 10 * 58 + 2, 3)
    assert np.array_equal(sheet, contact_sheet(plain, num_rows=3, seed=0))
    assert not np.array_equal(sheet, contact_sheet(plain, num_rows=3, seed=1))


def test_a_sheet_of_duplicates_is_ordered_by_ratio() -> None:
    shades = torch.arange(0, 250, 10, dtype=torch.uint8)
    split = Split("train", images(shades[:, None, None, None].expand(25, 1, 28, 28)))
    found = [FoundPair(Pair(k, 24, "near", 0.9, ratio=0.01 * (10 - k)), split, split) for k in range(9)]
    cell = (2 * 16 + 60, 118)
    sheet = duplicate_sheet(found, num_pairs=60)
    assert sheet.shape == (2 * cell[0], 6 * cell[1], 3)
    assert sheet[60, 30 :: cell[1], 0].tolist() == [80, 70, 60, 50, 40, 30]
    assert sheet[60, 88 :: cell[1], 0].tolist() == [240] * 6
    assert duplicate_sheet(found[:6], num_pairs=60).shape == (cell[0], 6 * cell[1], 3)
    few = duplicate_sheet(found, num_pairs=3)
    assert few.shape == (cell[0], 6 * cell[1], 3)
    assert few[60, 30 :: cell[1], 0].tolist() == [80, 40, 0, 0, 0, 0]

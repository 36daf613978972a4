"""Files of generated images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lab.distributed.collectives import Ranks
from diffusion_lab.reporting.image_files import ImageFiles
from support.ranks import run_on_ranks

SHAPES = [(3, 6, 6), (1, 6, 6)]


def pixels(shape: tuple[int, int, int], size: int = 10) -> Tensor:
    return torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write_files(folder: Path, shape: tuple[int, int, int]) -> None:
    files = ImageFiles(folder, num_pictures=6, num_columns=3, png=True, npz=True)
    files.prepare()
    for start in Ranks.current().shard(range(0, 10, 2)):
        files.add(range(100 + start, 102 + start), pixels(shape)[start : start + 2])
    files.finish(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_image_is_a_png_named_by_its_seed(shape: tuple[int, int, int], tmp_path: Path) -> None:
    write_files(tmp_path, shape)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{100 + k:06}.png" for k in range(10)]
    for number in (0, 9):
        with Image.open(tmp_path / "images" / f"{100 + number:06}.png") as picture:
            shown = np.asarray(picture.convert("RGB" if shape[0] == 3 else "L"))
        assert np.array_equal(shown.reshape(6, 6, shape[0]), pixels(shape)[number].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_archive_has_the_format_of_the_adm_evaluator(shape: tuple[int, int, int], tmp_path: Path) -> None:
    write_files(tmp_path, shape)
    with np.load(tmp_path / "samples_10x6x6x3.npz") as archive:
        assert archive.files == ["arr_0"]
        stored = archive["arr_0"]
    assert (stored.dtype, stored.shape) == (np.uint8, (10, 6, 6, 3))
    assert np.array_equal(stored, pixels(shape).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "samples.png", "samples_10x6x6x3.npz"]


def test_the_grid_shows_the_first_images(tmp_path: Path) -> None:
    write_files(tmp_path, (3, 6, 6))
    with Image.open(tmp_path / "samples.png") as picture:
        shown = np.asarray(picture)
    side = 6 * 9 + 2  # upsampled nine times
    assert shown.shape == (2 * side + 2, 3 * side + 2, 3)
    last = shown[2 + side : 2 + side + 54 : 9, 2 + 2 * side : 2 + 2 * side + 54 : 9]
    assert np.array_equal(last, pixels((3, 6, 6))[5].permute(1, 2, 0).numpy())


@pytest.mark.full
def test_two_ranks_write_the_same_files_as_one(tmp_path: Path) -> None:
    write_files(tmp_path / "one", (1, 6, 6))
    run_on_ranks(2, write_files, tmp_path / "results", tmp_path / "two", (1, 6, 6))
    names = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(names) == 12
    for name in names:
        if name.endswith(".npz"):
            with np.load(tmp_path / "one" / name) as one, np.load(tmp_path / "two" / name) as two:
                assert np.array_equal(one["arr_0"], two["arr_0"])
        else:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_partial_files_of_an_interrupted_job_are_ignored(tmp_path: Path) -> None:
    interrupted = ImageFiles(tmp_path, npz=True)
    interrupted.add(range(500, 502), pixels((3, 6, 6), 2))
    write_files(tmp_path, (3, 6, 6))
    assert [path.name for path in tmp_path.glob("*.npz")] == ["samples_10x6x6x3.npz"]

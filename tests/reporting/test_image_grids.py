import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lab.reporting.image_grids import grid, save_animation, save_picture, save_sheet


def flat(*levels: float, channels: int = 3) -> torch.Tensor:
    """One flat image of 8 x 6 pixels for each level."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, channels, 8, 6)


def test_images_are_placed_in_rows_from_left_to_right() -> None:
    picture = grid(flat(-1.0, -0.5, 0.0, 0.5, 1.0), num_columns=3, tile=6)
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * 8 + 3 * 2, 3 * 6 + 4 * 2, 3)  # 2 pixels of padding around each image
    centers = [[picture[y, x].tolist() for x in (5, 13, 21)] for y in (6, 16)]
    assert centers == [[[0] * 3, [64] * 3, [128] * 3], [[191] * 3, [255] * 3, [0] * 3]]


def test_the_range_is_fixed_so_that_saturation_shows() -> None:
    picture = grid(flat(-5.0, -0.25, 0.25, 5.0), num_columns=4, tile=6)
    assert picture[6, [5, 13, 21, 29], 0].tolist() == [0, 96, 159, 255]


def test_small_images_are_upsampled_by_an_integer_factor() -> None:
    images = torch.linspace(-1, 1, 48).view(1, 1, 8, 6).expand(2, 3, 8, 6)
    once, thrice = grid(images, 2, tile=6), grid(images, 2, tile=20)
    assert thrice.shape == (3 * 8 + 4, 2 * 3 * 6 + 6, 3)
    assert np.array_equal(thrice[2:26:3, 2:20:3], once[2:10, 2:8])


def test_large_images_keep_their_size() -> None:
    assert grid(torch.zeros(2, 3, 80, 60), 2, tile=20).shape == (84, 126, 3)


def test_grayscale_images_become_gray_rgb_pictures() -> None:
    picture = grid(flat(0.5, -0.5, channels=1), num_columns=2, tile=6)
    assert picture.shape == (12, 18, 3)
    assert picture[6, [5, 13]].tolist() == [[191] * 3, [64] * 3]


def test_pictures_are_lossless_and_their_folder_is_created(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    path = tmp_path / "deep" / "down" / "grid.png"
    save_picture(picture, path)
    assert np.array_equal(np.asarray(Image.open(path)), picture)


def test_an_animation_has_all_frames_with_their_durations(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "animation.webp"
    levels = [0, 60, 120, 180, 240]
    save_animation([np.full((16, 24, 3), level, dtype=np.uint8) for level in levels], path, seconds=1.0, rest=0.7)
    with Image.open(path) as animation:
        assert (animation.n_frames, animation.info["loop"], animation.size) == (5, 0, (24, 16))  # type: ignore[attr-defined]
        durations, shown = [], []
        for frame in range(5):
            animation.seek(frame)
            animation.load()
            durations.append(animation.info["duration"])
            shown.append(float(np.asarray(animation.convert("RGB")).mean()))
    assert durations == [200, 200, 200, 200, 700]
    assert shown == pytest.approx(levels, abs=4)


def test_a_contact_sheet_reads_png_files_only_and_bounds_the_shape_of_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")  # Pillow runs Ghostscript for an EPS file
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    files = {name: tmp_path / f"{name}.png" for name in ("eps", "tall", "wide", "fifo")}
    files["eps"].write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    Image.new("RGB", (1, 40_000), "red").save(files["tall"])
    Image.new("RGB", (40_000, 1), "red").save(files["wide"])
    os.mkfifo(files["fifo"])
    save_sheet(files, tmp_path / "sheet.png", width=40)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height < 8 * 40 + 100
    assert not (tmp_path / "called").exists()

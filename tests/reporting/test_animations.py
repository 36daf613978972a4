"""Animations with captions, as WebP, GIF and MP4."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.reporting.captions import LINE_HEIGHT, with_caption
from diffusion_lab.reporting.image_grids import save_animation


def frames(count: int, height: int = 33, width: int = 51) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def test_a_caption_is_below_the_picture_and_does_not_change_its_pixels() -> None:
    picture = frames(1)[0]
    captioned = with_caption(picture, ["frame 3", "Bag 50%"])
    assert captioned.shape == (33 + 2 * LINE_HEIGHT, 51, 3)
    assert np.array_equal(captioned[:33], picture)
    first, second = captioned[33 : 33 + LINE_HEIGHT], captioned[33 + LINE_HEIGHT :]
    assert first.max() > 200
    assert second.max() > 200
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_an_animation_has_its_frames_for_the_duration_of_its_rate(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"film.{suffix}"
    save_animation(frames(5), path, fps=20, rest=0)
    with Image.open(path) as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]
        film.seek(4)
        film.load()
        assert film.info["duration"] == 50


def test_a_video_repeats_its_last_frame_and_extends_odd_sides(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "film.mp4"
    save_animation(frames(6), path, fps=10, rest=0.5)
    assert ffmpeg.count_frames_and_secs(str(path))[0] == 10
    described = subprocess.run(
        [ffmpeg.get_ffmpeg_exe(), "-i", path], capture_output=True, text=True, check=False
    ).stderr
    assert "h264" in described
    assert ", 52x34, " in described

"""`metrics=memorization` in evaluations of images and of runs, and during training."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diffusion_lab
from diffusion_lab.data import ImageStore, Selection
from diffusion_lab.reporting.csv_files import read_csv
from support.commands import TINY, run

FASHION_MINI = Path(diffusion_lab.__file__).parent / "data" / "embedded" / "fashion_mini"
HELD_OUT = ["data.num_held_out=1000", "data.max_images=600"]
PIXELS = ["features=pixels", "metrics=[memorization]"]


def values_in(folder: Path) -> dict[str, Any]:
    numbers = json.loads((folder / "metrics.json").read_text())["numbers"]
    return {number["name"]: number["value"] for number in numbers}


def evaluate(folder: Path, *overrides: str) -> dict[str, Any]:
    done = run("evaluate.py", *overrides, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert f"{folder / 'nearest_pairs.png'}" in done.stdout
    return values_in(folder)


def test_stored_training_images_are_caught_and_shown_next_to_their_neighbors(tmp_path: Path) -> None:
    store = ImageStore(None, FASHION_MINI, channels=1, resolution=28, fit="pad", selection=Selection(1000, None, 600))
    pixels = store.load("train").gather(np.arange(100, 150))
    np.savez(tmp_path / "copies.npz", arr_0=pixels.permute(0, 2, 3, 1).numpy())
    found = evaluate(tmp_path / "out", f"images={tmp_path / 'copies.npz'}", "data=fashion_mini", *HELD_OUT, *PIXELS)
    assert found["memorized_share_pixels_50_train"] == 1
    assert found["memorized_share_held_out_pixels_50_train"] <= 0.02
    assert found["authenticity_pixels_50_train"] == 0
    assert found["c_t_pixels_50_train"] < -3
    rows = read_csv(tmp_path / "out" / "nearest_pairs.csv")
    assert [(int(row["sample"]), int(row["training_image"])) for row in rows] == [(k, 100 + k) for k in range(48)]
    assert {float(row["distance"]) for row in rows} == {0}
    with Image.open(tmp_path / "out" / "nearest_pairs.png") as sheet:
        assert sheet.size == (6 * (2 * (56 + 2) + 2), 8 * (56 + 4 + 2 * 16))
        left, right = (sheet.crop((x, 34, x + 56, 90)) for x in (2, 60))
    assert np.array_equal(np.asarray(left)[..., 0], np.kron(pixels[0, 0].numpy(), np.ones((2, 2), np.uint8)))
    assert np.array_equal(np.asarray(left), np.asarray(right))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["images={folder}", "reference={folder}", "features=inception", "metrics=[memorization]"],
            r"`metrics` must not contain memorization for reference=\S+, because it compares images with training "
            r"images and held-out images; data=NAME or reference=RUN names a data set that has both\.",
        ),
        (
            ["images={folder}", "data=fashion_mini", "data.max_images=300", *PIXELS],
            r"`metrics` must not contain memorization for a data set without held-out images, got the splits train; "
            r"data\.num_held_out=NUMBER holds out images of a new run\.",
        ),
    ],
)
def test_sets_without_training_or_held_out_images_are_refused(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "0.png")
    done = run("evaluate.py", *(override.format(folder=tmp_path) for override in overrides))
    assert done.returncode == 1
    assert re.fullmatch(f"error: {message}", done.stderr.strip().splitlines()[-1]), done.stderr


@pytest.mark.full
def test_a_run_and_its_saved_samples_have_the_same_values(tmp_path: Path) -> None:
    run_folder, samples = tmp_path / "run", tmp_path / "samples"
    done = run("train.py", *TINY, *HELD_OUT, f"hydra.run.dir={run_folder}")
    assert done.returncode == 0, done.stderr
    both = "metrics=[fid,memorization]"
    of_run = evaluate(tmp_path / "a", f"run={run_folder}", both, "num_samples=60", "num_pictures=0")
    files = ["save_png=true", "num_pictures=0", "num_images=60", "batch_size=100", f"hydra.run.dir={samples}"]
    done = run("sample.py", f"run={run_folder}", *files)
    assert done.returncode == 0, done.stderr
    of_images = evaluate(tmp_path / "b", f"images={samples / 'images'}", f"reference={run_folder}", both)
    assert of_run == of_images
    assert len(of_run) == 10
    assert of_run["memorized_share_fashion_cnn_60_train"] == 0  # two steps give noise
    sheets = [(tmp_path / name / "nearest_pairs.png").read_bytes() for name in ("a", "b")]
    assert sheets[0] == sheets[1]
    assert not list((tmp_path / "a").glob("nearest_pairs_*"))


@pytest.mark.full
def test_memorization_is_measured_during_training_and_refused_without_held_out_images(tmp_path: Path) -> None:
    small = [override for override in TINY if not override.startswith("callbacks.measure_distance")]
    measured = ["metrics=[memorization]", "num_samples=40", "callbacks.measure_distance.every_n_steps=2"]
    done = run("train.py", *small, *HELD_OUT, *measured, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert values_in(tmp_path / "run")["memorized_share_fashion_cnn_40_train"] == 0
    done = run("train.py", *small, "data.max_images=600", *measured, f"hydra.run.dir={tmp_path / 'refused'}")
    assert done.returncode == 1
    assert "error: `metrics` must not contain memorization for a data set without held-out images" in done.stderr

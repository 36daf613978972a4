"""`src/evaluate.py` on images of unknown origin, without a run."""

import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch_fidelity import calculate_metrics

from diffusion_lab.fingerprints import differences, flat
from diffusion_lab.reporting.csv_files import read_csv
from diffusion_lab.runs.setup.reference import run_store
from support.commands import TINY, run
from support.inception_weights import random_inception

GENERATION = {
    *("sampler", "schedule", "weights", "conventions", "guidance_scale", "guidance", "label", "quantization", "seed"),
    *("precision", "images", "preparation"),
}
"""Fingerprint fields that contain the origin of images."""

FEW = ["data=fashion_mini", "data.max_images=300"]

METRICS = "metrics=[fid,kid,is,precision_recall,density_coverage]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on 300 images."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("train.py", *TINY, "data.max_images=300", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def evaluate(folder: Path, *overrides: str) -> dict[str, Any]:
    """Run the command and return its metric values, with their fingerprints, by name."""
    done = run("evaluate.py", *overrides, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "metrics.json").read_text())
    return {number["name"]: number for number in record["numbers"]}


def require_equal(of_run: dict[str, Any], of_images: dict[str, Any]) -> None:
    assert {name: number["value"] for name, number in of_run.items()} == {
        name: number["value"] for name, number in of_images.items()
    }
    for name, number in of_run.items():
        found = differences([number["fingerprint"], of_images[name]["fingerprint"]])
        assert {field.partition(".")[0] for field in found} <= GENERATION
        assert flat(of_images[name]["fingerprint"])["images.origin"] == "unknown"


def compare_run_with_its_samples(trained: Path, folder: Path, num_samples: int) -> dict[str, Any]:
    reference = f"reference={trained}"  # the training images of the run, as with reference=train
    of_run = evaluate(
        folder / "run", f"run={trained}", reference, METRICS, f"num_samples={num_samples}", "num_pictures=0"
    )
    files = ["save_png=true", "save_npz=true", "num_pictures=0", f"hydra.run.dir={folder / 'samples'}"]
    done = run("sample.py", f"run={trained}", f"num_images={num_samples}", "batch_size=100", *files)
    assert done.returncode == 0, done.stderr
    of_images = evaluate(folder / "images", f"images={folder / 'samples' / 'images'}", reference, METRICS)
    require_equal(of_run, of_images)
    return of_images


@pytest.mark.full
def test_the_samples_of_a_run_have_the_same_values_from_the_run_and_from_their_files(
    trained: Path, tmp_path: Path
) -> None:
    of_folder = compare_run_with_its_samples(trained, tmp_path, 130)
    assert set(of_folder) >= {"fd_fashion_cnn_130_train", "kd_fashion_cnn_130_train", "cs_fashion_cnn_130"}


@pytest.mark.full
def test_an_archive_of_samples_has_the_values_of_the_folder_on_two_ranks(trained: Path, tmp_path: Path) -> None:
    of_folder = compare_run_with_its_samples(trained, tmp_path, 130)
    (archive,) = (tmp_path / "samples").glob("*.npz")
    of_ranks = evaluate(
        tmp_path / "npz", f"images={archive}", f"reference={trained}", METRICS, "trainer.accelerator=cpu",
        "trainer.devices=2",
    )  # fmt: skip
    assert of_ranks == of_folder  # values and fingerprints: gray images in three channels are the same images


@pytest.mark.full
def test_2000_samples_of_a_run_have_the_same_values_from_the_run_and_from_their_files(
    trained: Path, tmp_path: Path
) -> None:
    compare_run_with_its_samples(trained, tmp_path, 2000)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of random pixels: the folders a and b, b.npz with the images of b, and c.zip with images of 14 pixels."""
    folder, generator = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    a, b = generator.integers(0, 256, (2, 30, 28, 28, 3), dtype=np.uint8)
    for name, images in (("a", a), ("b", b)):
        (folder / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    np.savez(folder / "b.npz", b)
    with zipfile.ZipFile(folder / "c.zip", "w") as archive:
        for number, image in enumerate(a[:, :14, :14]):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="png")
            archive.writestr(f"{number}.png", buffer.getvalue())
    return folder


def test_sets_of_different_sources_make_one_table_with_one_extraction_of_the_reference(
    sets: Path, tmp_path: Path
) -> None:
    listed = f"images=[{sets}/a,{sets}/b/*.png,{sets}/b.npz]"
    done = run("evaluate.py", listed, *FEW, METRICS, f"hydra.run.dir={tmp_path / 'out'}",
               f"data.cache_folder={tmp_path / 'cache'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "out" / "images.csv")
    assert [row["images"] for row in rows] == ["a", "b/*.png", "b.npz"]
    values = [[value for name, value in row.items() if "fashion_cnn" in name] for row in rows]
    assert len(values[0]) == 9
    assert values[0] != values[1] == values[2]  # the same images, in natural order, from files and from an array
    assert done.stdout.count("all 300 images of reference=train") == 1
    found = json.loads((tmp_path / "out" / "1_b" / "metrics.json").read_text())["numbers"][0]["fingerprint"]
    assert found["preparation"] == {"channels": 1, "resolution": 28, "fit": "exact"}


def test_values_of_resized_images_are_not_shown_next_to_others_without_a_mark(sets: Path, tmp_path: Path) -> None:
    settings = [f"reference={sets}/b", "features=fashion_cnn"]
    evaluate(tmp_path / "all" / "exact", f"images={sets}/a", *settings)
    evaluate(tmp_path / "all" / "resized", f"images={sets}/c.zip", *settings, "preparation.fit=resize")
    for name, allowed in (("left_out", []), ("marked", ["allow=[images,preparation]"])):
        done = run("compare.py", f"numbers={tmp_path / 'all'}", *allowed, f"hydra.run.dir={tmp_path / name}")
        (table,) = (tmp_path / name).glob("*.csv")
        rows = read_csv(table)
        assert [row["preparation.fit"] for row in rows] == ["exact", "resize"]
        assert all(float(row["fd_fashion_cnn_30_b"]) > 0 for row in rows)
        assert ("fd_fashion_cnn_30_b" in table.with_suffix(".md").read_text()) == bool(allowed)
        if name == "left_out":
            assert (
                "fd_fashion_cnn_30_b cannot be compared, because the measurements differ: images.content is"
                in done.stderr
            )
            assert "preparation.fit is exact in " in done.stderr


def test_saved_statistics_replace_the_reference(sets: Path, tmp_path: Path) -> None:
    images, file = f"images={sets}/a", tmp_path / "clothes.npz"
    settings = ["metrics=[fid,kid]", "features=fashion_cnn"]
    done = run("evaluate.py", *FEW, f"save_statistics={file}", *settings,
               f"hydra.run.dir={tmp_path / 'save'}")  # fmt: skip
    assert f"the statistics of reference=train are in {file}" in done.stdout, done.stderr
    of_data = evaluate(tmp_path / "data", images, *FEW, *settings)
    assert evaluate(tmp_path / "file", images, f"reference={file}", *settings) == of_data
    assert next(iter(of_data)) == "fd_fashion_cnn_30_train"


def test_a_sweep_over_sets_of_images_makes_a_table_and_repeats_those_that_changed(sets: Path, tmp_path: Path) -> None:
    shutil.copytree(sets / "a", tmp_path / "a")
    command = ["-m", f"images={tmp_path}/a,{sets}/b.npz", f"reference={sets}/b", "features=fashion_cnn",
               f"hydra.sweep.dir={tmp_path / 'out'}"]  # fmt: skip
    done = run("evaluate.py", *command)
    assert done.returncode == 0, done.stderr
    values = [float(row["fd_fashion_cnn_30_b"]) for row in read_csv(tmp_path / "out" / "sweep.csv")]
    assert values[0] > values[1] == 0
    (tmp_path / "a" / "1.png").touch()
    assert re.findall(r"(restart|skip) ", run("evaluate.py", *command).stdout) == ["restart", "skip"]


MISTAKES: list[tuple[list[str], str]] = [
    (["images=SETS/d"], r"`images` must be a folder .*, got .*/d, which does not exist\."),
    (["images=SETS/empty"], r"images=.*/empty cannot be read as images: it has no image files\."),
    (["images=SETS/texts"], r"images=.*/texts cannot be read as images: its image files cannot be decoded\."),
    (["images=SETS/a/1.png"], r"`images` must be .*, got the single image .*/1\.png\."),
    (["images=SETS/a", "run=last"], r"`run` must not be given together with `images`, got run=last\."),
    (["images=SETS/a", "sampler=ddim"], r"sampler must not be given for `images`, because no network .*; run=RUN .*"),
    (["images=SETS/a", "guidance_scale=2"], r"guidance_scale must not be given for `images`, .*"),
    (["images=SETS/a", "weights=raw"], r"weights must not be given for `images`, .* got weights=raw; .*"),
    (["images=SETS/a", "metrics=[fid,nll]"], r"metrics must not contain bound \(nll\) for `images`, because .*"),
    (["images=SETS/a", "metrics=class_accuracy"], r"metrics must not contain class_accuracy for `images`, .*"),
    (["images=SETS/a"], r"`reference` must be a path .* or, with data=NAME, .*, got train without a data set\."),
    (["images=SETS/a", "data.path=SETS"], r"`data` must be given for data\.path=.*"),
    (
        ["images=SETS/c.zip", "data=fashion_mini"],
        r".*c\.zip must contain only images of 28 x 28 pixels .* \(0\.png\) has 14 x 14 .* preparation\.fit=resize .*",
    ),
    (["images=SETS/a", "data=fashion_mini", "num_samples=31"], r"num_samples must be at most 30 .*, got 31\."),
    (["images=SETS/a", "reference=SETS/b"], r"features=inception requires the weights file .*"),
    (["run=last", "data=cifar10"], r"`data` must not be given for a run, .*, got data=cifar10; data\.path=FOLDER .*"),
    (["save_statistics=SETS/x.txt"], r"`save_statistics` must be the path of an \.npz file, got .*"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_rejected_with_a_message(
    sets: Path, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # no weights of Inception
    overrides = [argument.replace("SETS", str(sets)) for argument in arguments]
    for name in ("empty", "texts"):
        (sets / name).mkdir(exist_ok=True)
    (sets / "texts" / "a.png").write_text("no image")
    done = run("evaluate.py", *overrides, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert re.fullmatch(f"error: {message}", done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.full
def test_values_agree_with_torch_fidelity_on_the_same_folders_and_with_its_cached_statistics(
    sets: Path, tmp_path: Path
) -> None:
    weights, cache = random_inception(tmp_path / "random.pth"), tmp_path / "cache"
    expected = calculate_metrics(
        input1=str(sets / "a"), input2=str(sets / "b"), fid=True, kid=True, kid_subset_size=30, cuda=False,
        save_cpu_ram=True, verbose=False, cache_root=str(cache), input2_cache_name="b",
        feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    settings = [f"images={sets}/a", f"features.weights={weights}", "features=inception"]
    of_folder = evaluate(tmp_path / "folder", *settings, f"reference={sets}/b", "metrics=[fid,kid]",
                         "preparation.resolution=28", "metrics.kid.subset_size=30")  # fmt: skip
    assert of_folder["fid_inception_30_b"]["value"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert of_folder["kid_inception_30_b"]["value"] == pytest.approx(
        expected["kernel_inception_distance_mean"], abs=1e-7
    )
    (statistics,) = cache.glob("*-stat-fid-2048.pt")
    of_cache = evaluate(tmp_path / "cached", *settings, f"reference={statistics}")
    (number,) = of_cache.values()
    assert number["value"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)


def test_the_name_of_a_split_is_no_run_although_the_runs_are_in_a_folder_of_this_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(__file__).parents[1] / "earlier_runs" / "v0_3" / "edm", tmp_path / "train" / "RUN")
    monkeypatch.setenv("DIFFUSION_LAB_LOGS", str(tmp_path))
    assert run_store("train") is None
    found = run_store("train/RUN")
    assert found is not None
    assert found[0].data.store._target_ == "diffusion_lab.data.ImageStore"

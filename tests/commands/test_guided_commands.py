"""Classifiers, guidance and cascades from the command line, in processes of their own."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lab.errors import UserError
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.paths import CONF
from diffusion_lab.runs import guidance_setup, sampling_setup
from support.commands import TINY, run, table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two steps of each: a classifier, a network for 14 x 14, one from 14 to 28 pixels; all know ten classes."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("classifier", "base", "upsampler")}
    words = {
        "base": ["train.py", *TINY, "data.resolution=14", "data.fit=resize", "model.patch_size=1"],
        "upsampler": ["train.py", *TINY, "low_resolution=noised", "low_resolution.resolution=14"],
    }
    for name, (script, *settings) in words.items():
        done = run(script, *settings, "conditioning=label", f"hydra.run.dir={folders[name]}")
        assert done.returncode == 0, done.stderr
    done = run(
        "train_classifier.py", "schedule=linear", "schedule.num_timesteps=8", "model.channels=16", "data.batch_size=8",
        "trainer.max_steps=2",
        "callbacks.measure_accuracy.num_images=100", "trainer.log_every_n_steps=1",
        f"hydra.run.dir={folders['classifier']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"classifier={folders['classifier']}" in done.stdout
    return folders


def test_a_classifiers_run_leaves_its_loss_and_accuracies(runs: dict[str, Path]) -> None:
    rows = table(runs["classifier"] / "metrics.csv")
    first = next(row for row in rows if row["loss"])
    assert float(first["loss"]) == pytest.approx(2.302585, abs=1e-5)  # ln 10: it starts by guessing
    summary = json.loads((runs["classifier"] / "summary.json").read_text())
    assert 0 <= summary["accuracy_train_t0.5"] <= 1
    assert json.loads((runs["classifier"] / "status.json").read_text())["state"] == "finished"


def test_a_classifiers_run_goes_on(runs: dict[str, Path], tmp_path: Path) -> None:
    done = run("train_classifier.py", f"resume={runs['classifier']}", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "2 of them are done" in done.stdout
    assert json.loads((runs["classifier"] / "summary.json").read_text())["steps"] == 3


def test_a_cascade_draws_the_same_images_alone_and_together(runs: dict[str, Path], tmp_path: Path) -> None:
    words = [f"run={runs['base']}", f"cascade=[{runs['upsampler']}]", "sampler.num_steps=3", "cascade_steps=2"]
    words += ["low_resolution_noise=0.2", f"work_folder={tmp_path / 'work'}"]
    done = run("sample.py", *words, "num_images=20", f"hydra.run.dir={tmp_path / 'all'}")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "all" / "images" / "000017.png") as image:
        assert image.size == (28, 28)
    assert run("sample.py", *words, "image=17", f"hydra.run.dir={tmp_path / 'one'}").returncode == 0
    names = [tmp_path / folder / "images" / "000017.png" for folder in ("all", "one")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_number_under_guidance_says_all_of_it(runs: dict[str, Path], tmp_path: Path) -> None:
    done = run(
        "evaluate.py", f"run={runs['upsampler']}", "num_samples=20", "metrics=[class_accuracy,fid]",
        "sampler.num_steps=2", f"classifier={runs['classifier']}", "classifier_scale=2", f"guide={runs['upsampler']}",
        "guidance_scale=1.5", "guidance.interval=[0.1,50]", "guidance.rescale=0.5", f"hydra.run.dir={tmp_path}",
        f"work_folder={tmp_path / 'work'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {n["name"]: n for n in json.loads((tmp_path / "metrics.json").read_text())["numbers"]}
    assert 0 <= found["class_accuracy_fashion_cnn_20"]["value"] <= 1
    fingerprint = found["fd_fashion_cnn_20_train"]["fingerprint"]
    assert fingerprint["guidance"] == {"name": "Strength", "interval": [0.1, 50], "rescale": 0.5}
    assert fingerprint["classifier_scale"] == 2
    assert len({fingerprint["classifier"]["weights_sha256"], fingerprint["guide"]["weights_sha256"]}) == 2
    assert fingerprint["low_resolution"]["from"] == "images of train"
    assert fingerprint["low_resolution"]["resolution"] == 14


@pytest.fixture
def hydra_here() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    guidance_setup._guide.cache_clear()
    guidance_setup._classifier.cache_clear()


def images(*words: str) -> SeededImages:
    config = compose("sample", overrides=["sampler.num_steps=2", *words])
    here: Any = SimpleNamespace(device=torch.device("cpu"))
    (target,) = sampling_setup.find_targets(config)
    return sampling_setup.build_images(config, target, here)[0]


@pytest.mark.usefixtures("hydra_here")
def test_a_classifier_changes_images_and_none_leaves_it_out(runs: dict[str, Path]) -> None:
    base = [f"run={runs['upsampler']}"]
    plain, guided, without = (
        images(*base, *words)
        for words in (
            [],
            [f"classifier={runs['classifier']}", "classifier_scale=1000"],
            [f"classifier={runs['classifier']}", "classifier=none"],
        )
    )
    assert guided.protocol()["classifier_scale"] == 1000
    assert plain.protocol() == without.protocol()
    assert torch.equal(plain.draw(range(16)), without.draw(range(16)))
    assert not torch.equal(plain.draw(range(16)), guided.draw(range(16)))


@pytest.mark.usefixtures("hydra_here")
def test_a_guide_is_found_from_any_folder(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusion_lab.runs.load.ROOT", runs["classifier"].parent)
    found = images(f"run={runs['upsampler']}", f"classifier={runs['classifier'].name}")
    assert found.guidance.classifier is not None


@pytest.mark.usefixtures("hydra_here")
@pytest.mark.parametrize(
    ("run_name", "words", "sentence"),
    [
        ("upsampler", ["classifier={base}"], "classifier must be the folder of a run of src/train_classifier.py, got"),
        (
            "upsampler",
            ["classifier=nowhere"],
            "classifier must be the folder of a run, got nowhere: nowhere/config.yaml",
        ),
        ("upsampler", ["guide={classifier}", "guidance_scale=2"], "guide must be the folder of a run of src/train.py"),
        ("base", ["classifier={classifier}"], "classifier must be trained on images of 1 channels and side 14, .* 28"),
        (
            "base",
            ["guide={upsampler}", "guidance_scale=2"],
            "guide must be trained on images of 1 channels and side 14",
        ),
        ("upsampler", ["guide={upsampler}"], "guidance_scale must be above 1 for the guide to have an effect, got 1"),
        ("upsampler", ["classifier={classifier}", "classifier_scale=-1"], "classifier_scale must be a number of at"),
        ("upsampler", ["guidance_scale=2", "guidance.rescale=2"], r"guidance: rescale must be in \[0, 1\], got 2"),
        ("upsampler", ["label=3"], "label must be left out where the images of train bring their own, got 3"),
        ("upsampler", ["low_resolution_noise=0.7"], r"low_resolution_noise must be in \[0, 0.5\], .* got 0.7"),
        ("base", ["cascade=[{base}]"], "cascade must name runs for super-resolution .*, got"),
        ("base", ["cascade=[{classifier}]", "cascade_steps=2"], "cascade must name runs .*, which holds a classifier"),
        ("base", ["cascade_steps=2"], "cascade must be given for cascade_steps=2, got none"),
        ("base", ["classifier_scale=4"], "classifier must be given for classifier_scale=4, got none"),
        ("base", ["low_resolution_noise=0.1"], "low_resolution_noise must be 0 for a run that enlarges nothing"),
        ("base", ["cascade=[nowhere]"], "cascade must be the folder of a run, got nowhere"),
        ("upsampler", ["cascade=[{upsampler}]"], "cascade must go on from images of side 14, .* got 28"),
        ("classifier", [], "run must be the folder of a run that draws images, got .*, which holds a classifier"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_together_is_one_sentence(
    runs: dict[str, Path], run_name: str, words: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        images(f"run={runs[run_name]}", *(word.format(**runs) for word in words))


@pytest.mark.usefixtures("hydra_here")
def test_a_run_of_an_earlier_version_is_one_sentence(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["base"], tmp_path / "old")
    config: Any = OmegaConf.load(tmp_path / "old" / "config.yaml")
    config.pop("guidance")
    OmegaConf.save(config, tmp_path / "old" / "config.yaml")
    with pytest.raises(UserError, match=r"run must be of version 0.2 or later, got .*old, whose .* has no guidance"):
        images(f"run={tmp_path / 'old'}")


@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [
        ("train.py", ["model=half_unet_quick"], "model must be a network that answers images, got HalfUNet"),
        ("train_classifier.py", ["model=unet_tiny"], "model must be a network that answers classes"),
        (
            "train_classifier.py",
            ["objective=hybrid"],
            "objective is not a setting: accepted are aug",
        ),
        ("train.py", [*TINY, "low_resolution=area", "low_resolution.resolution=28"], "low_resolution.resolution must"),
        (
            "train_classifier.py",
            ["model.resolution=32"],
            "model must see images of data.channels=1 and data.resolution=28",
        ),
        ("train_classifier.py", ["data.label_column=null"], "data.label_column must name the column of the classes"),
        ("train.py", [*TINY, "model.low_resolution_channels=1"], "model.low_resolution_channels must be 0"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_networks_of_the_other_command_are_refused_before_training(
    script: str, words: list[str], sentence: str, tmp_path: Path
) -> None:
    done = run(script, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert f"error: {sentence}" in done.stderr
    assert not (tmp_path / "run").exists()

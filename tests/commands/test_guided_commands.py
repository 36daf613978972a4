"""Classifiers, guidance and cascades from the command line, in separate processes."""

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
from diffusion_lab.runs.find import find_targets
from diffusion_lab.runs.setup import guidance as guidance_setup
from diffusion_lab.runs.setup import sampling as sampling_setup
from support.commands import TINY, run, table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two steps of a classifier, a network of 14 x 14 pixels and one from 14 to 28, on 300 images of ten classes."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("classifier", "base", "upsampler")}
    overrides = {
        "base": ["train.py", *TINY, "data.resolution=14", "data.fit=resize", "model.patch_size=1"],
        "upsampler": ["train.py", *TINY, "low_resolution=noised", "low_resolution.resolution=14"],
    }
    for name, (script, *settings) in overrides.items():
        settings += ["conditioning=label", "data.max_images=300"]
        done = run(script, *settings, f"hydra.run.dir={folders[name]}")
        assert done.returncode == 0, done.stderr
    done = run(
        "train_classifier.py", "schedule=linear", "schedule.num_timesteps=8", "model.channels=16", "data.batch_size=8",
        "trainer.max_steps=2", "callbacks.measure_accuracy.num_images=100", "trainer.log_every_n_steps=1",
        "data.max_images=300", f"hydra.run.dir={folders['classifier']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"classifier={folders['classifier']}" in done.stdout
    return folders


def test_a_classifier_run_logs_its_loss_and_accuracies(runs: dict[str, Path]) -> None:
    rows = table(runs["classifier"] / "metrics.csv")
    first = next(row for row in rows if row["loss"])
    assert float(first["loss"]) == pytest.approx(2.302585, abs=1e-5)  # ln 10: all classes are equal
    summary = json.loads((runs["classifier"] / "summary.json").read_text())
    assert 0 <= summary["accuracy_train_t0.5"] <= 1
    assert json.loads((runs["classifier"] / "status.json").read_text())["state"] == "finished"


@pytest.mark.full
def test_a_classifier_run_resumes(runs: dict[str, Path], tmp_path: Path) -> None:
    done = run("train_classifier.py", f"resume={runs['classifier']}", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "resuming after step 2" in done.stdout
    assert json.loads((runs["classifier"] / "summary.json").read_text())["steps"] == 3


def test_a_cascade_generates_the_same_image_alone_and_in_a_batch(runs: dict[str, Path], tmp_path: Path) -> None:
    overrides = [f"run={runs['base']}", f"cascade=[{runs['upsampler']}]", "sampler.num_steps=3", "cascade_steps=2"]
    overrides += ["low_resolution_noise=0.2", f"work_folder={tmp_path / 'work'}"]
    done = run("sample.py", *overrides, "num_images=20", f"hydra.run.dir={tmp_path / 'all'}")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "all" / "images" / "000017.png") as image:
        assert image.size == (28, 28)
    assert run("sample.py", *overrides, "image=17", f"hydra.run.dir={tmp_path / 'one'}").returncode == 0
    names = [tmp_path / folder / "images" / "000017.png" for folder in ("all", "one")]
    assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.full
def test_the_fingerprint_of_a_number_has_all_settings_of_guidance(runs: dict[str, Path], tmp_path: Path) -> None:
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
def initialized_hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    guidance_setup._guide.cache_clear()
    guidance_setup._classifier.cache_clear()


def images(*overrides: str) -> SeededImages:
    config = compose("sample", overrides=["sampler.num_steps=2", *overrides])
    fabric: Any = SimpleNamespace(device=torch.device("cpu"))
    (target,) = find_targets(config)
    return sampling_setup.build_images(config, target, fabric)[0]


@pytest.mark.usefixtures("initialized_hydra")
def test_a_classifier_changes_images_and_none_removes_it(runs: dict[str, Path]) -> None:
    base = [f"run={runs['upsampler']}"]
    plain, guided, without = (
        images(*base, *overrides)
        for overrides in (
            [],
            [f"classifier={runs['classifier']}", "classifier_scale=1000"],
            [f"classifier={runs['classifier']}", "classifier=none"],
        )
    )
    assert guided.protocol()["classifier_scale"] == 1000
    assert plain.protocol() == without.protocol()
    assert torch.equal(plain.generate(range(16)), without.generate(range(16)))
    assert not torch.equal(plain.generate(range(16)), guided.generate(range(16)))


@pytest.mark.usefixtures("initialized_hydra")
def test_a_guide_is_found_from_any_folder(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusion_lab.runs.find.ROOT", runs["classifier"].parent)
    found = images(f"run={runs['upsampler']}", f"classifier={runs['classifier'].name}")
    assert found.guidance.classifier is not None


OTHER_COMBINATIONS: list[tuple[str, list[str], str]] = [
    ("upsampler", ["guidance_scale=2", "guidance.rescale=2"], r"guidance: rescale must be in \[0, 1\], got 2"),
    ("upsampler", ["label=3"], r"`label` must be null .*\(the labels are those of .* split train\), got 3"),
    ("base", ["classifier_scale=4"], "`classifier` must be given for classifier_scale=4, got none"),
    ("base", ["cascade=[nowhere]"], "`cascade` must be a run folder, .*, got nowhere"),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.usefixtures("initialized_hydra")
@pytest.mark.parametrize(
    ("run_name", "overrides", "message"),
    [
        (
            "upsampler",
            ["classifier={base}"],
            "`classifier` must be a run folder of `python src/train_classifier.py`, got",
        ),
        (
            "upsampler",
            ["classifier=nowhere"],
            "`classifier` must be a run folder, .*, got nowhere, which does not exist",
        ),
        (
            "upsampler",
            ["guide={classifier}", "guidance_scale=2"],
            "`guide` must be a run folder of `python src/train.py`",
        ),
        (
            "base",
            ["classifier={classifier}"],
            "`classifier` must be trained on images of 1 channels and resolution 14,.* 28",
        ),
        (
            "base",
            ["guide={upsampler}", "guidance_scale=2"],
            "`guide` must be trained on images of 1 channels and resolution 14",
        ),
        ("upsampler", ["guide={upsampler}"], "guidance_scale must differ from 1 for .* effect, got 1"),
        (
            "upsampler",
            ["classifier={classifier}", "classifier_scale=-1"],
            "classifier_scale must be a finite number of at",
        ),
        (
            "upsampler",
            ["guidance_scale=2", "guidance.num_channels=2"],
            r"num_channels of the guidance must be in 1..1 \(the channels of the images or latents\), got 2",
        ),
        ("upsampler", ["low_resolution_noise=0.7"], r"low_resolution_noise must be in \[0, 0.5\] .* got 0.7"),
        ("base", ["cascade=[{base}]"], "`cascade` must list super-resolution runs .*, got"),
        ("base", ["cascade=[{classifier}]", "cascade_steps=2"], "`cascade` must list .*, which contains a classifier"),
        ("base", ["cascade_steps=2"], "`cascade` must be given for cascade_steps=2, got none"),
        ("base", ["low_resolution_noise=0.1"], "low_resolution_noise must be 0 without super-resolution"),
        ("upsampler", ["cascade=[{upsampler}]"], r"`cascade` must list .*resolution=28 .*, got a run with 14"),
        ("classifier", [], "`run` must be a run folder of `python src/train.py`, got .*, which contains a classifier"),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_COMBINATIONS),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_settings_that_do_not_fit_together_are_rejected(
    runs: dict[str, Path], run_name: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        images(f"run={runs[run_name]}", *(override.format(**runs) for override in overrides))


@pytest.mark.usefixtures("initialized_hydra")
def test_a_run_of_version_0_1_is_rejected(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["base"], tmp_path / "old")
    config: Any = OmegaConf.load(tmp_path / "old" / "config.yaml")
    config.pop("guidance")
    OmegaConf.save(config, tmp_path / "old" / "config.yaml")
    with pytest.raises(UserError, match=r"trained with version 0.2 or later, got .*old, whose .* has no guidance"):
        images(f"run={tmp_path / 'old'}")


@pytest.mark.parametrize(
    ("script", "overrides", "message"),
    [
        ("train.py", ["model=half_unet_quick"], "`model` must implement diffusion_lab.networks.Network, got HalfUNet"),
        (
            "train_classifier.py",
            ["model=unet_tiny"],
            "`model` must implement diffusion_lab.networks.ClassifierNetwork, got UNet",
        ),
        (
            "train_classifier.py",
            ["objective=hybrid"],
            "objective is not a setting; accepted settings are aug",
        ),
        ("train.py", [*TINY, "low_resolution=area", "low_resolution.resolution=28"], "low_resolution.resolution must"),
        (
            "train_classifier.py",
            ["model.resolution=32"],
            "`model` must take images with data.channels=1 and data.resolution=28",
        ),
        ("train_classifier.py", ["data.label_column=null"], "data.label_column must be the name of the label column"),
        ("train.py", [*TINY, "model.condition_channels=1"], "model.condition_channels must be 0"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_networks_that_do_not_fit_the_command_are_rejected_before_training(
    script: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    done = run(script, *overrides, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert f"error: {message}" in done.stderr
    assert not (tmp_path / "run").exists()

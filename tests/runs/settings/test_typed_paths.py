"""Relative paths in settings: read from the folder in which they were typed, and absolute in the config of a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lab.runs.settings.typed_paths import make_absolute, read_overrides, write_overrides
from support.commands import TINY, run, train


def write_images(folder: Path, num_images: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for k in range(num_images):
            pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a folder of images, an autoencoder, a weights file and a run next to it."""
    for name in ("pictures", "autoencoder", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "weights.pth").touch()
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "config.yaml").write_text("{objective: x}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    return tmp_path


SETTINGS = {
    "data.path": "pictures",
    "data.cache_folder": "cache",
    "guide": "guide",
    "space.autoencoder.pretrained_model_name_or_path": "autoencoder",
    "features.weights": "weights.pth",
}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_relative_path_becomes_absolute_in_the_config(key: str, home: Path) -> None:
    config = OmegaConf.create()
    OmegaConf.update(config, key, SETTINGS[key])
    make_absolute(config)
    assert OmegaConf.select(config, key) == str(home / SETTINGS[key])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "/somewhere"),
        ("data.path", None),
        ("guide", "none"),
        ("guide", "no_such_run"),
        ("space.autoencoder.pretrained_model_name_or_path", "stabilityai/sd-vae-ft-ema"),
    ],
)
def test_other_values_are_unchanged(key: str, value: str | None, home: Path) -> None:
    config = OmegaConf.create()
    OmegaConf.update(config, key, value)
    make_absolute(config)
    assert OmegaConf.select(config, key) == value


def test_a_path_in_the_home_folder_is_absolute(home: Path) -> None:
    config = OmegaConf.create({"data": {"path": "~/pictures"}})
    make_absolute(config)
    assert config.data.path == str(home / "elsewhere" / "pictures")


def test_overrides_are_kept_as_typed_and_read_from_the_folder_in_which_they_were_typed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["seed=1", *(f"{key}={value}" for key, value in SETTINGS.items())]
    write_overrides(typed, home)
    assert read_overrides(home) == typed
    monkeypatch.chdir(home / "elsewhere")
    absolute = ["seed=1", *(f'{key}="{home / value}"' for key, value in SETTINGS.items())]
    assert read_overrides(home) == absolute
    write_overrides([*absolute, "classifier=null", "data.store.path=new"], home)
    assert list(OmegaConf.load(home / "overrides.yaml")) == [
        *typed,
        "classifier=null",
        f'data.store.path="{home / "elsewhere" / "new"}"',
    ]
    assert (home / "overrides.yaml").read_text().startswith(f'# typed in "{home}"\n')


def test_overrides_of_an_earlier_version_are_read_from_the_current_folder(home: Path) -> None:
    (home / "overrides.yaml").write_text("- data.path=pictures\n")
    assert read_overrides(home) == ["data.path=pictures"]


@pytest.mark.full
def test_a_run_with_a_relative_path_is_resumed_and_evaluated_from_another_folder_and_with_moved_images(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "pictures")
    (tmp_path / "elsewhere").mkdir()
    set_of_images = ["data=class_folders", "data.path=pictures", "data.channels=1", "data.resolution=8"]
    features = ["features=fashion_cnn", "schedule=cosine", "schedule.num_timesteps=8"]
    first = train(*TINY, *set_of_images, *features, "hydra.run.dir=run", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "run"
    assert "data.path=pictures" in OmegaConf.load(folder / "overrides.yaml")
    assert OmegaConf.load(folder / "config.yaml").data.store.path == str(tmp_path / "pictures")
    there = tmp_path / "elsewhere"
    assert train("resume=../run", "trainer.max_steps=3", cwd=there).returncode == 0
    assert "data.path=pictures" in OmegaConf.load(folder / "overrides.yaml")
    out = ["num_samples=20", "num_pictures=0", "sampler.num_steps=2", f"work_folder={tmp_path / 'work'}"]
    evaluated = run("evaluate.py", "run=../run", *out, f"hydra.run.dir={tmp_path / 'out'}", cwd=there)
    assert evaluated.returncode == 0, evaluated.stderr
    value = json.loads((tmp_path / "out" / "metrics.json").read_text())["numbers"]

    shutil.move(tmp_path / "pictures", tmp_path / "moved")
    for missing in (
        run("evaluate.py", "run=../run", *out, f"hydra.run.dir={tmp_path / 'none'}", cwd=there),
        train("resume=../run", "trainer.max_steps=4", cwd=there),
    ):
        assert missing.returncode == 1
        assert missing.stderr.splitlines()[-1] == (
            f"error: data.path must be a folder of images or parquet files, got {tmp_path / 'pictures'}, which does "
            "not exist; data.path=FOLDER names the new place of moved images."
        )
    place = "data.path=../moved"
    again = run("evaluate.py", "run=../run", *out, place, f"hydra.run.dir={tmp_path / 'again'}", cwd=there)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["numbers"] == value
    assert train("resume=../run", "trainer.max_steps=4", place, cwd=there).returncode == 0
    assert OmegaConf.load(folder / "config.yaml").data.path == str(tmp_path / "moved")

    write_images(tmp_path / "other", num_images=11)
    for script, message in (("evaluate.py", "data.path must have the images that run was"), ("sample.py", "data.path")):
        refused = run(script, "run=../run", "data.path=../other", f"hydra.run.dir={tmp_path / script}", cwd=there)
        assert refused.returncode == 1
        assert message in refused.stderr.splitlines()[-1]
        assert f"{tmp_path / 'other'}, whose decoded content differs." in refused.stderr.splitlines()[-1]

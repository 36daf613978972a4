"""`src/prepare.py`, and training with what it has prepared."""

import sys
from pathlib import Path
from subprocess import CompletedProcess

import diffusers
import numpy as np
import pytest
import torch

from support import commands
from support.commands import SMALL
from support.inception_weights import random_inception

PEERS = str(Path(sys.prefix, "peers"))
"""Folder with the library diffusers, see `make install`."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def prepare(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    """Run prepare with a logs folder in `cwd`."""
    return commands.run("prepare.py", *arguments, cwd=cwd, DIFFUSION_LAB_LOGS=str(cwd / "logs"), PYTHONPATH=PEERS)


def content(cache: Path) -> dict[str, int]:
    """Return the modification times of all files in the cache except locks."""
    return {
        str(path): path.stat().st_mtime_ns for path in cache.rglob("*") if path.suffix != ".lock" and path.is_file()
    }


def test_the_same_overrides_train_with_the_prepared_images_and_statistics_alone(tmp_path: Path, cache: Path) -> None:
    done = prepare(*SMALL, "trainer=ddp", "trainer.devices=8", "trainer.num_nodes=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (pixels,) = cache.glob("images/*/pixels.uint8")
    (statistics,) = cache.glob("references/train-fashion_cnn-pooled-*.npz")
    lines = done.stdout.splitlines()
    assert lines[0] == f"images    500 of 28 x 28 pixels (train), in {pixels.parent}"
    assert lines[1].startswith("features  fashion_cnn: ")
    assert lines[1].endswith("features/fashion_cnn.pt")
    assert lines[2] == f"reference fashion_cnn, pooled features of train: {statistics}"
    assert lines[3].startswith(
        f"ready: `python {commands.ROOT}/src/train.py` with the same overrides needs no internet"
    )
    assert len(lines) == 4
    with np.load(statistics) as arrays:
        assert int(arrays["count"]) == 500
    before = content(cache)
    trained = commands.train(*SMALL, f"hydra.run.dir={tmp_path / 'run'}", HF_HUB_OFFLINE="1")
    assert trained.returncode == 0, trained.stderr
    assert content(cache) == before
    assert "features of train" not in trained.stderr
    again = prepare(*SMALL, f"hydra.run.dir={tmp_path / 'run'}", f"resume={tmp_path / 'run'}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[:3] == lines[:3]
    assert content(cache) == before
    assert not list((tmp_path / "run").glob("prepare*"))


@pytest.mark.full
def test_features_of_all_metrics_and_pretrained_weights_are_loaded(tmp_path: Path, cache: Path) -> None:
    weights = random_inception(tmp_path / "inception.pth")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(4, 4, 4, 4), latent_channels=4, norm_num_groups=2,
        down_block_types=4 * ("DownEncoderBlock2D",), up_block_types=4 * ("UpDecoderBlock2D",), layers_per_block=1,
    ).save_pretrained(tmp_path / "autoencoder")  # fmt: skip
    done = prepare(
        "data.resolution=32", "data.max_images=20", "model=dit_s", "model.channels=16", "model.depth=1",
        "model.num_heads=2", "space=sd_latents", "features=inception",
        f"space.autoencoder.pretrained_model_name_or_path={tmp_path}/autoencoder",
        f"features.weights={weights}", "metrics=[fid,sfid,kid,is]", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"weights   space.autoencoder: {tmp_path}/autoencoder in {tmp_path}/autoencoder\n" in done.stdout
    assert done.stdout.count(f"features  inception: {weights}\n") == 1
    files = {path.name.split("-")[2]: path for path in cache.glob("references/*.npz")}
    assert sorted(files) == ["pooled", "spatial"]  # the Inception Score needs no reference
    assert all(f"{name} features of train: {path}\n" in done.stdout for name, path in files.items())
    with np.load(files["pooled"]) as arrays:
        assert arrays["rows"].shape == (20, 2048)  # needed by KID


@pytest.mark.full
def test_missing_weights_are_an_error_and_runs_without_a_distance_need_none(tmp_path: Path, cache: Path) -> None:
    missing = ("features=inception", "features.weights=/nowhere/inception.pth")
    done = prepare(*SMALL, *missing, cwd=tmp_path)
    message = "error: features.weights must be an existing weights file, got /nowhere/inception.pth."
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, message)
    done = prepare(*SMALL, *missing, "callbacks.measure_distance=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "features  none, because callbacks.measure_distance=null\n" in done.stdout
    assert not (cache / "references").exists()


@pytest.mark.full
def test_a_sweep_is_prepared_in_this_process_whatever_its_launcher(tmp_path: Path, cache: Path) -> None:
    sweep = ("-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "data.resolution=28,32", *SMALL)
    done = prepare(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(" of ")[1] for line in done.stdout.splitlines() if line.startswith("images")) == [
        f"{side} x {side} pixels (train), in {path}" for side in (28, 32)
        for path in cache.glob(f"images/*-{side}-*") if path.is_dir()
    ]  # fmt: skip
    refused = prepare("-m", "hydra/sweeper=optuna", "optimizer.lr=interval(1e-4,1e-2)", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: prepare must be given values of all settings")


def test_a_setting_that_train_rejects_is_rejected_before_anything_is_decoded(tmp_path: Path, cache: Path) -> None:
    done = prepare(*SMALL, "model.channels=7", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: model")
    assert not cache.exists()

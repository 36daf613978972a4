"""`src/reconstruct_ema.py` on a small run, and `src/evaluate.py` on its checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lab.commands.reconstruct_ema import reconstruct_ema
from diffusion_lab.ema.post_hoc import Profile, combination
from diffusion_lab.ema.snapshots import combined, saved_averages
from diffusion_lab.errors import UserError
from diffusion_lab.runs.load import load_module
from support.commands import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sixty steps with snapshots of its averages every ten steps."""
    folder = tmp_path_factory.mktemp("trained")
    done = run(
        "train.py", "ema=power", "model=unet_quick", "model.channels=8", "data.batch_size=8", "trainer.max_steps=60",
        "schedule=cosine", "schedule.num_timesteps=8", "callbacks.sample_images=null", "trainer.precision=32-true",
        "callbacks.measure_distance=null", "callbacks.save_averages.every_n_steps=10", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def reconstruct(folder: Path, **settings: object) -> float:
    return reconstruct_ema(OmegaConf.create({"run": str(folder), "length": "???", "step": None, **settings}))


@pytest.mark.full
def test_evaluation_measures_the_reconstructed_average(trained: Path, tmp_path: Path) -> None:
    made = run("reconstruct_ema.py", f"run={trained}", "length=0.1", f"hydra.run.dir={tmp_path / 'note'}")
    assert made.returncode == 0, made.stderr
    printed = "EMA length 0.1 at step 60, from 12 snapshots; 0.00% of the averaging profile is not reproduced"
    assert printed in made.stdout
    settings = [
        "metrics=reconstruction", "metrics.reconstruction.split=train", "metrics.reconstruction.num_images=10",
        "num_pictures=4", "sampler.num_steps=4", "trainer.precision=32-true", f"run={trained}",
    ]  # fmt: skip
    one = run("evaluate.py", *settings, "checkpoint=ema_0.100.ckpt", f"hydra.run.dir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    several = run("evaluate.py", "-m", *settings, "weights=main,narrow,raw", f"hydra.sweep.dir={tmp_path}")
    assert several.returncode == 0, several.stderr
    folders = ("one", "weights-main", "weights-narrow", "weights-raw")
    made_again, main, narrow, raw = (error(tmp_path / folder) for folder in folders)
    assert made_again == pytest.approx(main, rel=1e-5)
    assert abs(narrow - main) > 1e-4 * main
    assert abs(raw - narrow) > 1e-4 * main
    pictures = {(tmp_path / folder / "samples.png").read_bytes() for folder in folders[1:]}
    assert len(pictures) == 3


def error(folder: Path) -> float:
    content = json.loads((folder / "summary.json").read_text())
    return float(content["reconstruction_rmse_train_10"])


def test_an_average_at_an_earlier_step_has_the_step_in_its_file_name(trained: Path) -> None:
    reconstruct(trained, length=0.07, step=40)
    module = load_module(trained, "ema_0.070_step_0000040.ckpt")
    saved = [snapshot for snapshot in saved_averages(trained / "checkpoints" / "ema") if snapshot.profile.step <= 40]
    made = combination([snapshot.profile for snapshot in saved], Profile(0.07, 40))
    expected = combined(saved, made.coefficients)
    state = module.ema.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert module.ema.num_updates == 40


def test_a_length_that_is_barely_reproduced_logs_a_warning(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert 0.01 < reconstruct(trained, length=0.15) < 0.1
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith(
        "length=0.15 cannot be reconstructed accurately from 12 snapshots with EMA lengths 0.05, 0.1: "
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": "???", "length": 0.1}, r"`run` must be given \(run=logs/train/RUN\), got no value"),
        ({}, r"`length` must be given \(length=0\.1\), got no value"),
        ({"run": "/nowhere", "length": 0.1}, r"`run` must be a run folder, .*, got /nowhere, which does not exist"),
        ({"length": 0.3}, r"`length` must be a number in \(0, 0\.288\], got 0\.3"),
        ({"length": "short"}, r"`length` must be a number in \(0, 0\.288\], got short"),
        ({"length": 0.1, "step": 44}, r"`step` must be the step of a snapshot \(10 to 60\), got 44; try step=40"),
        (
            {"length": 0.02},
            r"length=0\.02 cannot be reconstructed .* 12 snapshots with EMA lengths 0\.05, 0\.1: \d+\.\d% of the",
        ),
    ],
)
def test_an_invalid_setting_is_rejected_with_a_message(
    trained: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        reconstruct(**{"folder": trained, **settings})  # type: ignore[arg-type]


def test_a_run_without_snapshots_is_rejected(trained: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(trained / "config.yaml")
    OmegaConf.save(config, tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"`run` must be a run folder with snapshots .* \(no snapshots\)"):
        reconstruct(tmp_path, length=0.1)
    config.ema.decays = {"main": {"_target_": "diffusion_lab.ema.averages.RampedDecay"}}
    OmegaConf.save(config, tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"`run` must be a run trained with ema=power, .*: RampedDecay"):
        reconstruct(tmp_path, length=0.1)


@pytest.mark.full
def test_weights_cannot_be_selected_in_a_reconstructed_checkpoint(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    reconstruct(tmp_path / "run", length=0.1)
    done = run(
        "evaluate.py",
        f"run={tmp_path / 'run'}",
        "checkpoint=ema_0.100.ckpt",
        "weights=raw",
        f"hydra.run.dir={tmp_path / 'new'}",
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "error: `weights` must be null for checkpoint=ema_0.100.ckpt (which has only the reconstructed average), "
        "got raw."
    )

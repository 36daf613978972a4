"""`python src/train.py resume=RUN`, in processes of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf

from support.commands import ROOT, SMALL, table, train

FEW = [word for word in SMALL if "max_steps" not in word] + ["callbacks.save_last.every_n_steps=2"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, saved after two and after three."""
    folder = tmp_path_factory.mktemp("stopped run, with = and 'quotes'")
    done = train(*FEW, "trainer.max_steps=3", f'hydra.run.dir="{folder}"')
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, in another place."""
    return shutil.copytree(stopped, tmp_path / "run")


OF_THE_CLOCK = ("images_per_second", "data_wait", "measuring_seconds", "measuring_share")


def state(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / name)["state_dict"]
    return weights


def numbers(folder: Path) -> list[dict[str, str]]:
    """All that was logged but what the clock says."""
    rows = table(folder / "metrics.csv")
    return [{key: row[key] for key in row if key not in OF_THE_CLOCK} for row in rows]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_a_resumed_run_is_the_run_that_never_stopped(run: Path, tmp_path: Path) -> None:
    whole = train(*FEW, "trainer.max_steps=6", f"hydra.run.dir={tmp_path / 'whole'}")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    rest = train("resume=run", "trainer.max_steps=6", cwd=tmp_path)
    assert (whole.returncode, rest.returncode) == (0, 0), rest.stderr
    assert "last.ckpt is damaged" in rest.stderr
    assert "Going on from previous.ckpt" in rest.stderr
    assert "2 of them are done" in rest.stdout
    assert numbers(run) == numbers(tmp_path / "whole")
    for name, weight in state(tmp_path / "whole").items():
        assert torch.equal(state(run)[name], weight)

    again = train(f"resume={run}")  # remembers how far it was to go
    assert again.returncode == 0
    assert "nothing left to do" in again.stdout
    assert "has done its 6 steps" in again.stdout


def test_a_fork_goes_on_in_a_run_of_its_own_at_its_own_rate(stopped: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in stopped.rglob("*"))
    own = [
        f"hydra.run.dir={tmp_path / 'fork'}",
        "trainer.max_steps=4",
        "optimizer.lr=0.01",
        "trainer.log_every_n_steps=1",
    ]
    done = train(f'resume="{stopped}"', "fork=true", *own)
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in table(tmp_path / "fork" / "metrics.csv") if row["loss"]]
    assert row["step"] == "4"
    assert float(row["learning_rate"]) == pytest.approx(0.01 * 4 / 100)
    config = OmegaConf.load(tmp_path / "fork" / "config.yaml")
    assert config.forked_from == str(stopped)
    assert config.model.channels == 8
    assert str(stopped) not in (tmp_path / "fork" / "config.yaml").read_text().replace(f"forked_from: {stopped}", "")
    assert sorted(path.name for path in stopped.rglob("*")) == before

    checkpoint = torch.load(tmp_path / "fork" / "checkpoints" / "previous.ckpt")
    assert checkpoint["global_step"] == 3  # its own from the start: a fork that is killed early has lost nothing
    assert checkpoint["callbacks"] == {}  # and counts no distance of the other run as its own

    larger = train(f'resume="{stopped}"', "fork=true", "model.channels=16", f"hydra.run.dir={tmp_path / 'larger'}")
    assert larger.returncode == 1
    assert last_line(larger).startswith("error: fork must keep what has a state (model, conditioning, ema, times)")
    assert not (tmp_path / "larger").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optimizer.lr=0.1"], "these differ: optimizer.lr (was 0.0005, got 0.1); fork=true starts a run of its own"),
        (["seed=1", "data.batch_size=16"], "data.batch_size (was 8, got 16), "),
        (["schedule=cosine"], "schedule._target_ (was diffusion_lab.process.LinearSchedule, got "),
        (["fork=no", "optimizer.lr=0.1"], "fork must be true or false, got no."),
        (["trainer.max_steps=abc"], "trainer.max_steps must be a whole number, got abc."),
        (["hydra.run.dir=elsewhere"], "hydra.run.dir goes with fork=true alone"),
        (["optimizer.learning=0.1"], "optimizer.learning is not a setting in optimizer"),
    ],
    ids=lambda words: words if isinstance(words, str) else words[0],
)
def test_what_would_change_the_result_is_refused_by_name(run: Path, words: list[str], sentence: str) -> None:
    done = train(f"resume={run}", *words)
    assert done.returncode == 1
    assert sentence in last_line(done)
    assert "Traceback" not in done.stderr
    assert torch.load(run / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_other_images_than_before_are_refused(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt")
    assert len(checkpoint["ImageDataModule"]["fingerprint"]) == 64
    checkpoint["ImageDataModule"]["fingerprint"] = "of others"
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    done = train(f"resume={run}", "trainer.max_steps=9")
    assert done.returncode == 1
    assert "fashion_mini holds others now: their decoded content differs" in last_line(done)
    assert numbers(run)[-1]["step"] == "3"  # a refusal leaves the folder as it was


def test_a_folder_that_another_run_is_in_is_left_alone(run: Path) -> None:
    with FileLock(run / ".lock"):
        done = train(f"resume={run}", "trainer.max_steps=9")
    assert done.returncode == 1
    assert last_line(done) == f"error: {run} is being worked in by another process; wait for its end, or stop it."


def test_mistakes_are_said_in_one_sentence(run: Path, tmp_path: Path) -> None:
    missing = train("resume=logs/train/nowhere")
    assert last_line(missing) == (
        "error: resume must be the folder of a run, or last, got logs/train/nowhere: it holds no config.yaml."
    )
    nothing = train("resume=")
    assert last_line(nothing) == "error: resume must be the folder of a run, or last, got nothing."
    sweep = train("-m", f"resume={run}", "seed=1,2")
    assert last_line(sweep).startswith("error: resume continues one run at a time")
    for name in ("last.ckpt", "previous.ckpt"):
        path = run / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:1000])
    damaged = train(f"resume={run}", "trainer.max_steps=9")
    assert last_line(damaged).startswith("error: resume finds no whole checkpoint: ")
    (run / "config.yaml").write_text("{")
    broken = train(f"resume={run}")
    assert last_line(broken).startswith(f"error: resume cannot read {run / 'config.yaml'}: ")
    assert all(done.returncode == 1 for done in (missing, nothing, sweep, damaged, broken))


def test_a_run_that_is_told_to_stop_says_how_to_resume_it_and_does_not_report_success(tmp_path: Path) -> None:
    words = [*FEW, "trainer.max_steps=100000", "callbacks.measure_distance=null", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, str(ROOT / "src" / "train.py"), *words]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ)
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    step = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert said.strip().endswith(f"stopped: {step:,} steps are kept; to go on: python src/train.py resume=run")

    done = train("resume=run", f"trainer.max_steps={step + 2}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [int(row["step"]) for row in table(tmp_path / "run" / "metrics.csv") if row["loss"]]
    assert steps == [*range(2, step + 3, 2)] + ([step + 2] if step % 2 else [])


def test_a_resumed_run_is_the_same_run_on_weights_and_biases(tmp_path: Path) -> None:
    words = [*FEW, "trainer.max_steps=2", "callbacks.measure_distance=null", "callbacks.sample_images=null"]
    first = train(*words, "logger=wandb", "logger.wandb.offline=true", f"hydra.run.dir={tmp_path}")
    second = train(f"resume={tmp_path}", "trainer.max_steps=4")
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    runs = {path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert runs == {(tmp_path / "wandb_id").read_text().splitlines()[0]}

"""`python src/train.py resume=RUN`, in separate processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf

from support.commands import ROOT, SMALL, start, table, train

FEW = [override for override in SMALL if "max_steps" not in override] + ["callbacks.save_last.every_n_steps=2"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with checkpoints after two and after three."""
    folder = tmp_path_factory.mktemp("stopped run, with = and 'quotes'")
    done = train(*FEW, "trainer.max_steps=3", f'hydra.run.dir="{folder}"')
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run in another folder."""
    return shutil.copytree(stopped, tmp_path / "run")


TIMINGS = ("images_per_second", "data_wait", "measuring_seconds", "measuring_share")


def state(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / name)["state_dict"]
    return weights


def numbers(folder: Path) -> list[dict[str, str]]:
    """Return all logged metrics except timings."""
    rows = table(folder / "metrics.csv")
    return [{key: row[key] for key in row if key not in TIMINGS} for row in rows]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def require_measuring_share(printed: str, *, is_resumed: bool) -> None:
    """Assert that the share of the measurements refers to the printed duration, which is that of the last start."""
    (whole,) = re.findall(r"done: 6 steps in (\d:\d\d:\d\d)", printed)
    period = r"(\d:\d\d:\d\d) since the run was resumed" if is_resumed else f"({whole})"
    ((took, last, share),) = re.findall(rf"measuring took ([\d.]+) s of the {period} \((\d+)%\)", printed)
    seconds = [60 * int(text[2:4]) + int(text[5:]) for text in (whole, last)]
    assert seconds[1] <= seconds[0] if is_resumed else seconds[1] == seconds[0]
    assert (float(took) - 0.05) / (seconds[1] + 0.5) - 0.005 <= int(share) / 100
    assert int(share) / 100 <= (float(took) + 0.05) / (seconds[1] - 0.5) + 0.005


def test_a_resumed_run_equals_an_uninterrupted_run(run: Path, tmp_path: Path) -> None:
    uninterrupted = train(*FEW, "trainer.max_steps=6", f"hydra.run.dir={tmp_path / 'uninterrupted'}")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    rest = train("resume=run", "trainer.max_steps=6", cwd=tmp_path)
    assert (uninterrupted.returncode, rest.returncode) == (0, 0), rest.stderr
    assert "last.ckpt is damaged" in rest.stderr
    assert "Using previous.ckpt instead." in rest.stderr
    assert "resuming after step 2" in rest.stdout
    assert re.search(r"\ndone: 6 steps in \S+ \(4 of them by this command, after step 2, in 0:00:\d\d\)", rest.stdout)
    for done in (uninterrupted, rest):
        require_measuring_share(done.stdout, is_resumed=done is rest)
    assert numbers(run) == numbers(tmp_path / "uninterrupted")
    weights, expected = state(run), state(tmp_path / "uninterrupted")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())

    again = train(f"resume={run}")  # with the saved trainer.max_steps
    assert again.returncode == 0
    assert "nothing left to do" in again.stdout
    assert "all 6 steps of" in again.stdout


def test_a_fork_continues_in_a_new_run_with_its_own_learning_rate(stopped: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in stopped.rglob("*"))
    own = [
        f"hydra.run.dir={tmp_path / 'fork'}",
        "trainer.max_steps=4",
        "optimizer.lr=0.01",
        "trainer.log_every_n_steps=1",
    ]
    done = train(f'resume="{stopped}"', "fork=true", *own)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\ndone: 4 steps \(1 of them by this command, after step 3, in 0:00:\d\d\), ", done.stdout)
    (row,) = [row for row in table(tmp_path / "fork" / "metrics.csv") if row["loss"]]
    assert row["step"] == "4"
    assert float(row["learning_rate"]) == pytest.approx(0.01 * 4 / 100)
    config = OmegaConf.load(tmp_path / "fork" / "config.yaml")
    assert config.forked_from == str(stopped)
    assert config.model.channels == 8
    assert str(stopped) not in (tmp_path / "fork" / "config.yaml").read_text().replace(f"forked_from: {stopped}", "")
    assert sorted(path.name for path in stopped.rglob("*")) == before

    checkpoint = torch.load(tmp_path / "fork" / "checkpoints" / "previous.ckpt")
    assert checkpoint["global_step"] == 3  # the fork has its own checkpoint from the start, also if it is killed early
    assert checkpoint["callbacks"] == {}  # without the distances of the other run

    larger = train(f'resume="{stopped}"', "fork=true", "model.channels=16", f"hydra.run.dir={tmp_path / 'larger'}")
    assert larger.returncode == 1
    assert last_line(larger).startswith("error: fork=true must keep the settings of all parts with a state (model, ")
    assert not (tmp_path / "larger").exists()

    fewer = train(f'resume="{stopped}"', "fork=true", "trainer.max_steps=3", f"hydra.run.dir={tmp_path / 'fewer'}")
    assert last_line(fewer) == (
        "error: trainer.max_steps must be above 3, the number of steps of the checkpoint, which are counted too, got 3."
    )
    assert not (tmp_path / "fewer").exists()


def test_a_finished_run_that_is_trained_further_equals_a_run_that_never_stopped(tmp_path: Path) -> None:
    settings = [*SMALL[:4], *SMALL[6:], "data.max_images=50", "callbacks.measure_distance.every_n_steps=4"]
    settings += ["trainer.log_every_n_steps=2", "callbacks.sample_images=null"]
    folders = tmp_path / "further", tmp_path / "uninterrupted"
    assert train(*settings, "trainer.max_steps=5", f"hydra.run.dir={folders[0]}").returncode == 0
    first = numbers(folders[0])
    assert [row["step"] for row in first if row["after_training"]] == ["5"]
    measured = {name: (folders[0] / f"{name}.json").read_text() for name in ("metrics", "summary")}
    further = train(f"resume={folders[0]}", "trainer.max_steps=9")
    assert further.returncode == 0, further.stderr
    for name, text in measured.items():
        assert (folders[0] / f"{name}_step_0000005.json").read_text() == text
    value = json.loads(measured["metrics"])["numbers"][0]["value"]
    assert re.search(rf"_20_train: [\d.]+ at step 4, {value:.2f} at step 5, [\d.]+ at step 9 \(", further.stdout)
    assert "measured with DDIM with 5 steps in bf16-mixed; evaluate uses DDIM with 5 steps in 32" in further.stdout
    assert train(*settings, "trainer.max_steps=9", f"hydra.run.dir={folders[1]}").returncode == 0
    assert numbers(folders[0]) == numbers(folders[1])
    assert [row["step"] for row in numbers(folders[0]) if row["fd_fashion_cnn_20_train"]] == ["4", "8", "9"]
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(folder / "checkpoints" / name) for folder in folders)
        assert one["callbacks"] == other["callbacks"], name
        assert one["state_dict"].keys() == other["state_dict"].keys()
        assert all(torch.equal(one["state_dict"][key], value) for key, value in other["state_dict"].items()), name
        states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
        assert all(torch.equal(states[0][k][name], states[1][k][name]) for k in states[1] for name in states[1][k])

    last = json.loads((folders[1] / "metrics.json").read_text())["numbers"]
    checkpoint = (folders[1] / "checkpoints" / "last.ckpt").read_bytes()
    (folders[1] / "metrics.json").unlink()
    (folders[1] / "summary.json").write_text('{"steps": 5}')  # as after a kill in the last measurement
    assert train(f"resume={folders[1]}").returncode == 0
    assert json.loads((folders[1] / "metrics.json").read_text())["numbers"] == last
    assert json.loads((folders[1] / "summary.json").read_text())["steps"] == 9
    assert [row["step"] for row in numbers(folders[1]) if row["fd_fashion_cnn_20_train"]] == ["4", "8", "9"]
    assert (folders[1] / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


OTHER_REJECTED_SETTINGS: list[tuple[list[str], str]] = [
    (["optimizer.lr=0.1", "logger=csv"], "/run fork=true optimizer.lr=0.1 logger=csv"),
    (["seed=1", "data.batch_size=16"], "data.batch_size (was 8, got 16), "),
    (["trainer.max_steps=abc"], "trainer.max_steps must be a whole number of at least 1, got abc."),
    (["optimizer.learning=0.1"], "optimizer.learning is not a setting of Adam"),
]
"""Mistakes of the same kinds, for `make test-full`."""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.1"], "these differ: optimizer.lr (was 0.0005, got 0.1); fork=true starts a new run"),
        (["schedule=cosine"], "these differ: schedule (was linear, got cosine); fork=true starts a new run"),
        (["optimizer.lr=0.1", "trainer.max_steps=2"], "trainer.max_steps must be above 3, the number of steps of the"),
        (["fork=no", "optimizer.lr=0.1"], "fork must be true or false, got no."),
        (["hydra.run.dir=elsewhere"], "hydra.run.dir is accepted only with fork=true"),
        *(pytest.param(*case, marks=pytest.mark.full) for case in OTHER_REJECTED_SETTINGS),
    ],
    ids=lambda overrides: overrides if isinstance(overrides, str) else overrides[0],
)
def test_settings_that_would_change_the_result_are_rejected_by_name(
    run: Path, overrides: list[str], message: str
) -> None:
    before = (run / "status.json").read_bytes()
    done = train(f"resume={run}", *overrides)
    assert done.returncode == 1
    assert message in last_line(done)
    assert (run / "status.json").read_bytes() == before
    assert "Traceback" not in done.stderr
    assert torch.load(run / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_other_images_than_those_of_the_run_are_rejected(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt")
    assert len(checkpoint["ImageDataModule"]["fingerprint"]) == 64
    checkpoint["ImageDataModule"]["fingerprint"] = "other"
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    done = train(f"resume={run}", "trainer.max_steps=9")
    assert done.returncode == 1
    assert "fashion_mini, whose decoded content differs" in last_line(done)
    assert numbers(run)[-1]["step"] == "3"  # the folder is unchanged


def test_a_folder_in_use_by_another_command_is_rejected(run: Path) -> None:
    with FileLock(run / ".lock"):
        done = train(f"resume={run}", "trainer.max_steps=9")
    assert done.returncode == 1
    assert last_line(done) == f"error: {run} is in use by another process; wait until it ends, or stop it."


def test_a_run_that_cannot_be_resumed_is_rejected_with_a_message(run: Path, tmp_path: Path) -> None:
    missing = train("resume=logs/train/nowhere")
    accepted = "error: `resume` must be a run folder, a checkpoint file in it or last, got"
    assert last_line(missing).startswith(f"{accepted} logs/train/nowhere, which does not exist in ")
    empty = train("resume=")
    assert last_line(empty) == f"{accepted} no value."
    sweep = train("-m", f"resume={run}", "seed=1,2")
    assert last_line(sweep).startswith("error: resume=... must be used without --multirun")
    for name in ("last.ckpt", "previous.ckpt"):
        path = run / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:1000])
    damaged = train(f"resume={run}", "trainer.max_steps=9")
    assert last_line(damaged).startswith("error: the run cannot be resumed, because no checkpoint can be read (")
    (run / "config.yaml").write_text("{")
    broken = train(f"resume={run}")
    unreadable = f"error: {run / 'config.yaml'} cannot be read: "
    assert last_line(broken).startswith(unreadable)
    assert all(done.returncode == 1 for done in (missing, empty, sweep, damaged, broken))


def test_a_stopped_run_prints_how_to_resume_it_and_has_a_nonzero_exit_status(tmp_path: Path) -> None:
    overrides = [
        *FEW,
        "trainer.max_steps=100000",
        "callbacks.measure_distance=null",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    command = start("train.py", *overrides, cwd=tmp_path)
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.1)
    os.kill(command.pid, signal.SIGTERM)
    stopped = command.wait()
    assert stopped.returncode == 128 + signal.SIGTERM
    step = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert stopped.stderr.strip().endswith(
        f"stopped after step {step:,}; to resume: python {ROOT}/src/train.py resume={tmp_path / 'run'}"
    )

    done = train("resume=run", f"trainer.max_steps={step + 2}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [int(row["step"]) for row in table(tmp_path / "run" / "metrics.csv") if row["loss"]]
    assert steps == [*range(2, step + 3, 2)] + ([step + 2] if step % 2 else [])


@pytest.mark.full
def test_a_resumed_run_is_the_same_run_on_weights_and_biases(tmp_path: Path) -> None:
    overrides = [*FEW, "trainer.max_steps=2", "callbacks.measure_distance=null"]
    first = train(*overrides, "logger=wandb", "logger.wandb.offline=true", f"hydra.run.dir={tmp_path}")
    second = train(f"resume={tmp_path}", "trainer.max_steps=4")
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    runs = {path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert runs == {(tmp_path / "wandb_id").read_text().splitlines()[0]}
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))
    assert [row["step"] for row in table(tmp_path / "metrics.csv") if row["loss"]] == ["2", "4"]

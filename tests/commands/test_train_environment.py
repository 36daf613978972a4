"""Training commands in environments and with numbers that other programs or a slip of the hand leave behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lab.runs import status as run_status
from support.commands import ROOT, TINY, table, train


@pytest.mark.full
def test_variables_of_a_rank_without_a_launcher_change_nothing(tmp_path: Path) -> None:
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "SLURM_PROCID": "1"}
    command = [sys.executable, str(ROOT / "src" / "train.py"), *TINY, f"hydra.run.dir={tmp_path}"]
    environment = {**os.environ, **variables}  # of a new process: Lightning reads the variables when it is imported
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert table(tmp_path / "metrics.csv")[-1]["step"] == "2"
    assert (tmp_path / "status.json").is_file()
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    "overrides",
    [["optimizer.lr=1e30", "trainer.max_steps=6"], pytest.param(["optimizer.lr=1e30"], marks=pytest.mark.full)],
)
def test_a_run_whose_steps_were_all_skipped_after_the_first_has_failed(overrides: list[str], tmp_path: Path) -> None:
    done = train(*TINY, *overrides, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 1
    assert "error: training failed: the loss or the gradient was not finite in every step" in done.stderr
    found = run_status.read(tmp_path)
    assert found is not None
    assert found.state == "failed"
    assert "training failed" in (found.reason or "")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=inf", "optimizer.lr must be a finite number, got inf."),
        ("trainer.gradient_clip_val=nan", "trainer.gradient_clip_val must be a finite number, got nan."),
    ],
)
def test_a_number_that_is_not_finite_is_refused_before_training(override: str, message: str, tmp_path: Path) -> None:
    done = train(*TINY, override, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {message}"
    assert not (tmp_path / "run").exists()

"""Run folders that version 0.3 wrote are resumed, forked, sampled, evaluated and guided with its numbers."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from diffusion_lab.config.earlier_versions import current_metric
from diffusion_lab.fingerprints import differences
from earlier_runs.outcome import copy_runs, perform
from earlier_runs.recipes import GOES_ON
from support.commands import ROOT, run
from support.representatives import with_representatives

STORED = ROOT / "tests" / "earlier_runs" / "v0_3"
EXPECTED = json.loads((STORED / "expected.json").read_text())
TOLERANCE = 1e-4
"""Relative: processors round in different ways. `make.py --compare` asks for every bit."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored folders, for commands that only read them."""
    return copy_runs(STORED, tmp_path_factory.mktemp("v0_3") / "runs", ROOT)


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of its own for a command that goes on in a folder."""
    target = copy_runs(STORED, tmp_path / "runs", ROOT)
    yield target
    shutil.rmtree(target)


def start(script: str, words: list[str]) -> None:
    done = run(script, *words, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(sys.prefix, "peers")))
    assert done.returncode == 0, done.stderr


REPRESENTATIVES = ("resume_plain", "sample_cascade")


@pytest.mark.parametrize("name", with_representatives({name: name for name in GOES_ON}, REPRESENTATIVES))
def test_a_run_of_0_3_goes_on_with_the_numbers_of_0_3(name: str, copied: Path, tmp_path: Path) -> None:
    outcome = perform(GOES_ON[name], start, copied, tmp_path / "new")
    expected = {current_metric(figure): value for figure, value in EXPECTED[name]["figures"].items()}
    assert outcome.figures.keys() == expected.keys()
    assert outcome.figures == pytest.approx(expected, rel=TOLERANCE, abs=1e-6)
    if name in (images := np.load(STORED / "expected_images.npz")):
        assert np.abs(outcome.images.astype(int) - images[name]).max() <= 1  # grey levels of 256


def test_numbers_of_0_3_stand_beside_the_same_numbers_of_today(runs: Path, tmp_path: Path) -> None:
    today = tmp_path / "today"
    start(
        "evaluate.py",
        [
            f"run={runs}/plain",
            "num_samples=20",
            "num_pictures=0",
            f"work_folder={tmp_path}/work",
            f"hydra.run.dir={today}",
        ],
    )
    done = run("compare.py", f"numbers=[{runs}/evaluated,{today}]", f"hydra.run.dir={tmp_path}/compared")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "compared" / "numbers.csv").read_text()
    assert table.count("75.775") == 2  # fd_fashion_cnn_20_train of both
    then, now = (json.loads((folder / "metrics.json").read_text()) for folder in (runs / "evaluated", today))
    assert differences([then["numbers"][0]["fingerprint"], now["numbers"][0]["fingerprint"]]) != {}


def test_a_sweep_of_0_3_given_again_finds_its_runs(runs: Path) -> None:
    overrides = [str(word) for word in OmegaConf.load(runs / "sweep" / "optimizer.lr-0.001" / "overrides.yaml")]
    fixed = [word for word in overrides if not word.startswith(("optimizer", "sweep"))]
    done = run(
        "train.py", "-m", *fixed, "optimizer.lr=0.001,0.002", "lr_schedule.num_warmup_steps=1",
        f"hydra.sweep.dir={runs}/sweep",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skip (finished)") == 2

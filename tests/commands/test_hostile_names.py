"""Commands on run folders and classes with names that a terminal, rich or a spreadsheet would interpret."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.config.overrides import quote
from diffusion_lab.reporting.csv_files import read_csv
from support.commands import ROOT, TINY, run
from support.hostile_names import INVISIBLE, SHOWN

CLASSES = [name for name in SHOWN if "/" not in name]
RUNS = {"r[/x]": "r[/x]"} | {name: shown for name, shown in SHOWN.items() if "/" not in name}
MAIN = ("r[/x]", "r\x1b[31mq")
EACH = [pytest.param(name, marks=[] if name in MAIN else pytest.mark.full, id=RUNS[name]) for name in RUNS]
SETTINGS = ["sampler=ddim", "sampler.num_steps=2"]
EVALUATION = [*SETTINGS, "features=fashion_cnn", "num_samples=4", "num_pictures=0"]


def require_success(done: "subprocess.CompletedProcess[str]") -> "subprocess.CompletedProcess[str]":
    assert done.returncode == 0, done.stderr
    assert not INVISIBLE.search(done.stdout + done.stderr)
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of four images per class, with hostile class names and names of damaged files."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for k in range(4):
            pixels = rng.integers(0, 255, (28, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
        (folder / name / "=damaged\x1b[2J.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def settings(data: Path) -> list[str]:
    return ["data=class_folders", f"data.path={data}", "data.resolution=28", "data.channels=1"]


@pytest.fixture(scope="module")
def runs(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of a run with two steps, in folders with hostile names."""
    top = tmp_path_factory.mktemp("runs")
    done = run("train.py", *TINY, *settings, "conditioning=label", f"hydra.run.dir={top / 'trained'}")
    assert "classes: 0 $x$ $\\frac$, 1 %s %(name)d {0}, 2 +cmd" in require_success(done).stdout
    folders = {name: top / "copies" / name for name in RUNS}
    for folder in folders.values():
        shutil.copytree(top / "trained", folder)
    return folders


def test_a_set_with_hostile_class_names_is_inspected(data: Path, settings: list[str], tmp_path: Path) -> None:
    done = require_success(run("inspect_data.py", *settings, f"hydra.run.dir={tmp_path}"))
    for name in CLASSES:
        assert f" {SHOWN[name]} " in done.stdout
    damaged = read_csv(Path(done.stderr.partition("listed in ")[2].partition(")")[0]))
    assert {row["file"] for row in damaged} == {str(data / name / "=damaged\x1b[2J.png") for name in CLASSES}


@pytest.mark.parametrize("name", EACH)
def test_a_run_with_a_hostile_name_is_evaluated(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    done = run("evaluate.py", f"run={quote(str(runs[name]))}", *EVALUATION, f"hydra.run.dir={tmp_path}")
    assert f"{RUNS[name]}, last.ckpt, step 2\n" in require_success(done).stdout


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == MAIN[1] else pytest.mark.full, id=RUNS[name]) for name in RUNS]
)
def test_a_run_with_a_hostile_name_is_sampled(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    overrides = [*SETTINGS, "num_images=2", f"label={quote('r[bold red]q')}", f"hydra.run.dir={tmp_path}"]
    done = require_success(run("sample.py", f"run={quote(str(runs[name]))}", *overrides))
    assert f"{RUNS[name]} at step 2 are in {tmp_path}: samples.png, images\n" in done.stdout
    assert done.stdout.splitlines()[1].startswith("classes: 0 $x$ $\\frac$, 1 %s %(name)d {0}, 2 +cmd, 3 -x, 4 1, ")


@pytest.mark.full
def test_evaluations_of_runs_with_hostile_names_are_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    folders = [runs[name] for name in ("r[bold red]q", "r\x1b[31mq", "=1+1", "-x", "two\nlines")]
    values = ",".join(quote(str(folder)) for folder in folders)
    done = run("evaluate.py", f"run=[{values}]", *EVALUATION, f"hydra.run.dir={tmp_path / 'many'}")
    assert (
        f"{SHOWN['two' + chr(10) + 'lines']}, last.ckpt, step 2: fd_fashion_cnn_4_train "
        in require_success(done).stdout
    )
    compared = run("compare.py", f"numbers={tmp_path / 'many'}", f"hydra.run.dir={tmp_path / 'compared'}")
    for output in (done.stdout, require_success(compared).stdout):
        assert all(f" {SHOWN[folder.name]} " in output for folder in folders)
    for table in (tmp_path / "many" / "runs.csv", tmp_path / "compared" / "numbers.csv"):
        assert [row["trained"] for row in read_csv(table)] == [folder.name for folder in folders]
    assert "\r\n3_-x,'-x," in (tmp_path / "many" / "runs.csv").read_bytes().decode(errors="replace")


def test_a_sweep_with_hostile_names_shows_its_status_in_ascii(runs: dict[str, Path], tmp_path: Path) -> None:
    sweep = tmp_path / "-s\x1b[2J[bold]"
    shutil.copytree(runs["-x"].parent, sweep)
    command = [sys.executable, str(ROOT / "src" / "sweep.py"), "status", sweep.name]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, encoding="ascii")
    assert not INVISIBLE.search(done.stdout)
    for name in RUNS:
        assert f" {RUNS[name].encode('ascii', 'backslashreplace').decode()} " in done.stdout
    assert {row["run"] for row in read_csv(sweep / "sweep.csv")} == set(RUNS)


def test_the_error_for_a_missing_run_shows_its_name_in_lines_of_one_message(tmp_path: Path) -> None:
    name = "no\x1b[31m[/x]\nerror: run"
    done = run("evaluate.py", f"run={quote(str(tmp_path / name))}", f"hydra.run.dir={tmp_path / 'out'}")
    assert done.returncode == 1
    assert not INVISIBLE.search(done.stderr)
    assert f"got {tmp_path}/no\\x1b[31m[/x]\n  error: run, which matches nothing." in done.stderr

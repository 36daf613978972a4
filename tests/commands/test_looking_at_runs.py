"""Commands that only look at runs show their true state and leave every run folder unchanged."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab import checkpoint_files
from support.commands import TINY, run, table, train

MEASURED = [*TINY, "callbacks.save_last.every_n_steps=2"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four runs, of which the first two have lost their processes: here, and on another host."""
    folder = tmp_path_factory.mktemp("sweep")
    done = train("-m", *MEASURED, "seed=1,2,3", f"hydra.sweep.dir={folder}")
    assert done.returncode == 0, done.stderr
    hour_ago = time.time() - 3600
    for seed, owner in ((1, {"pid": 999_999_999}), (2, {"host": "elsewhere"})):
        path = folder / f"seed-{seed}" / "status.json"
        status: dict[str, Any] = json.loads(path.read_text())
        status |= {"state": "running", "since": hour_ago, "starts": [status["starts"][0] | owner | {"ended": None}]}
        path.write_text(json.dumps(status))
        for file in path.parent.rglob("*"):
            os.utime(file, (hour_ago, hour_ago))
    return folder


def content_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of each file in the run folders of a sweep."""
    files = [path for path in folder.glob("*/**/*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_the_status_of_a_sweep_is_true_and_only_its_own_folder_is_written(sweep: Path) -> None:
    before = content_of(sweep)
    done = run("sweep.py", "status", str(sweep))
    assert done.returncode == 0, done.stderr
    states = [row["state"] for row in table(sweep / "sweep.csv")]
    assert (states[0], states[2]) == ("failed", "finished")
    assert states[1].startswith("no sign of life since 20")
    assert "process 999999999 ended without a status" in done.stdout
    assert "on elsewhere; if it has ended, take_over=true continues the run here" in done.stdout
    assert "1 finished, 1 no sign of life, 1 failed" in done.stdout
    assert content_of(sweep) == before


@pytest.mark.parametrize("command", ["compare", "evaluate", pytest.param("sample", marks=pytest.mark.full)])
def test_a_command_that_reads_runs_leaves_their_folders_unchanged(command: str, sweep: Path, tmp_path: Path) -> None:
    before = content_of(sweep)
    arguments = {
        "compare": [f"numbers={sweep}"],
        "evaluate": [f"run={sweep}/seed-1", "metrics=is", "num_samples=20", "trainer.precision=32-true"],
        "sample": [f"run={sweep}/seed-2", "num_images=4", "trainer.precision=32-true"],
    }
    done = run(f"{command}.py", *arguments[command], f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert content_of(sweep) == before


def test_a_run_on_another_host_is_resumed_when_told_to(sweep: Path) -> None:
    folder = sweep / "seed-2"
    refused = train(f"resume={folder}", "trainer.max_steps=4")
    assert refused.returncode == 1
    assert "on elsewhere, which has given no sign of life since 20" in refused.stderr
    assert "the same command with take_over=true continues the run here" in refused.stderr
    assert json.loads((folder / "status.json").read_text())["state"] == "running"

    done = train(f"resume={folder}", "trainer.max_steps=4", "take_over=true")
    assert done.returncode == 0, done.stderr
    assert checkpoint_files.read_run(folder / "checkpoints" / "last.ckpt")["global_step"] == 4
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], len(status["starts"])) == ("finished", 2)
    for name in ("config.yaml", "overrides.yaml"):  # the next command must be told again
        assert "take_over: true" not in (folder / name).read_text()
        assert "take_over=true" not in (folder / name).read_text()


def test_a_sweep_continues_the_run_of_a_process_that_is_gone(sweep: Path) -> None:
    done = train("-m", *MEASURED, "seed=1,2,3", f"hydra.sweep.dir={sweep}")
    assert done.returncode == 0, done.stderr
    assert json.loads((sweep / "seed-1" / "status.json").read_text())["state"] == "finished"

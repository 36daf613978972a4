"""Messages about folders of commands that contain no results."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffusion_lab.commands.compare import compare
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status as run_status
from diffusion_lab.runs.find import MEASURED, find_place
from diffusion_lab.runs.results import write_metrics


@pytest.fixture
def evaluations(tmp_path: Path) -> Path:
    """Folder of three evaluations: a with results, b that failed, and c whose results are in another folder."""
    folder = tmp_path / "evaluate"
    fingerprint = {"num_samples": 50, "sampler": {"name": "DDIM", "num_steps": 10}, "seed": 0}
    record = {"run": "logs/train/a", "checkpoint": "last.ckpt", "step": 8}
    write_metrics(folder / "a", record | {"numbers": [{"name": "fd_x_50", "value": 1.0, "fingerprint": fingerprint}]})
    for name in "abc":
        run_status.mark_running(folder / name)
    run_status.mark_failed(folder / "b", "killed")
    for name in "ac":
        run_status.mark_finished(folder / name, None)
    (folder / "c" / ".hydra").mkdir()
    (folder / "c" / ".hydra" / "config.yaml").write_text(json.dumps({"output_folder": "/images/c"}))
    return folder


@pytest.mark.parametrize("pattern", ["evaluate/*", "evaluate"])
def test_one_note_names_the_folders_without_results(
    pattern: str, evaluations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    numbers = str(evaluations.parent / pattern)
    compare(OmegaConf.create({"numbers": numbers, "allow": [], "output_folder": str(tmp_path / "table")}))
    notes = [record.getMessage() for record in caplog.records if "no results" in record.getMessage()]
    (note,) = notes
    assert "b (it failed: start its command again); " in note
    assert note.endswith("c (its results are in /images/c, its output_folder)")


def test_an_unfinished_evaluation_is_refused_with_its_state(evaluations: Path) -> None:
    for name, reason in (("b", "it failed: start its command again"), ("c", "its results are in /images/c, its")):
        with pytest.raises(UserError, match=f"which has no metrics.json; {reason}"):
            find_place("numbers", str(evaluations / name), MEASURED)

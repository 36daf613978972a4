"""Error messages for run folders without checkpoints, and for folders whose config.yaml is not that of a run."""

import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffusion_lab.config.program import PROGRAM_VARIABLE
from diffusion_lab.errors import UserError
from diffusion_lab.runs import status
from diffusion_lab.runs.find import find_run, find_targets
from diffusion_lab.runs.setup.cascade import stage_configs
from diffusion_lab.runs.setup.guidance import _classifier, _guide
from diffusion_lab.runs.setup.sampling import require_loadable

RUN = "{model: a, data: b, schedule: c, optimizer: d, objective: e, sampler: f, trainer: {max_steps: 9000}}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run folder that logged two steps and has no checkpoint."""
    monkeypatch.setenv(PROGRAM_VARIABLE, "lab")
    (tmp_path / "A" / "checkpoints").mkdir(parents=True)
    (tmp_path / "A" / "config.yaml").write_text(RUN)
    (tmp_path / "A" / "metrics.csv").write_text("step,loss\n1000,0.5\n2000,0.4\n")
    return tmp_path / "A"


def test_a_run_without_checkpoints_is_refused_with_its_step_and_how_to_resume_it(folder: Path) -> None:
    again = f"`lab train resume={folder}` trains it from its first step."

    def refused() -> str:
        with pytest.raises(UserError) as error:
            find_targets(OmegaConf.create({"run": str(folder), "checkpoint": "last.ckpt"}))
        return str(error.value)

    assert refused() == f"{folder} has no checkpoint; {again}"
    status.mark_running(folder)
    assert refused() == f"{folder} has no checkpoint yet: the run is running after step 2,000 of 9,000."
    status.mark_failed(folder, "interrupted")
    shutil.rmtree(folder / "checkpoints")
    assert refused() == f"{folder} has no checkpoint: the run is interrupted after step 2,000 of 9,000; {again}"
    (folder / "metrics.csv").unlink()
    assert refused() == f"{folder} has no checkpoint: the run is interrupted; {again}"


@pytest.mark.parametrize(
    ("text", "missing"),
    [("", "model, data, schedule, optimizer"), (RUN.replace("objective", "other"), "objective")],
    ids=["empty", "without an objective"],
)
def test_a_config_that_is_not_that_of_a_run_is_refused_with_its_missing_settings(
    text: str, missing: str, folder: Path
) -> None:
    (folder / "config.yaml").write_text(text)
    expected = f"{folder}/config.yaml must be the config of a run, as training writes it, but it has no {missing}."
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        find_run("run", str(folder))
    (folder / "checkpoints" / "last.ckpt").touch()
    config = OmegaConf.create({"cascade": [str(folder)]})
    for use in (
        lambda: require_loadable(OmegaConf.create({"cascade": None}), [find_run("run", str(folder))]),
        lambda: stage_configs(config),
        lambda: _guide(str(folder)),
        lambda: _classifier(str(folder)),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
            use()

"""Config folders of other packages on the command line."""

from pathlib import Path

import pytest

from diffusion_lab.config.search_path import search_path_overrides, with_search_path
from diffusion_lab.errors import UserError
from diffusion_lab.sweeps.local import run_arguments
from diffusion_lab.sweeps.plan import PlannedRun


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders with a choice each, below the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two parts"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / f"net_{name[0]}.yaml").write_text("_target_: mine.Net\n")
    return [tmp_path / "one", tmp_path / "two parts"]


def test_flags_and_overrides_become_one_override_with_absolute_paths(folders: list[Path]) -> None:
    one, two = folders
    expected = [f"hydra.searchpath=[file://{one},'file://{two}']", "seed=1"]
    assert with_search_path(["--config-dir", "one", "seed=1", "--config-dir=two parts"]) == expected
    assert with_search_path(["seed=1", "hydra.searchpath=[one,'two parts']"]) == expected
    assert with_search_path(expected) == expected
    assert with_search_path(["seed=1"]) == ["seed=1"]
    given = ["--cfg", "job", "seed=1", "--config-dir=one"]
    assert with_search_path(given) == ["--cfg", "job", f"hydra.searchpath=[file://{one}]", "seed=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-dir", "missing"], "--config-dir must be a folder of config groups, got missing"),
        (["hydra.searchpath=[missing]"], "hydra.searchpath must be a folder of config groups, got missing"),
        (["hydra.searchpath=one"], r"hydra.searchpath must be a list of folders: hydra.searchpath=\[FOLDER\], got one"),
    ],
)
def test_a_folder_that_does_not_exist_is_rejected(folders: list[Path], arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_search_path(arguments)


def test_a_file_with_the_name_of_a_choice_of_the_package_is_rejected(folders: list[Path]) -> None:
    (folders[0] / "model" / "unet_tiny.yaml").write_text("_target_: mine.Net\n")
    with pytest.raises(UserError, match=r"unet_tiny.yaml has the name of a file of Diffusion Lab \(model=unet_tiny\)"):
        with_search_path(["--config-dir", "one"])


def test_the_processes_of_a_sweep_receive_the_folders(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    override = with_search_path(["--config-dir", "one"])
    monkeypatch.setattr("sys.argv", ["train.py", "-m", "seed=1,2", *override])
    assert search_path_overrides() == override
    run = PlannedRun(("seed=1",), Path("sweep", "seed-1"), None, is_done=False)
    arguments = run_arguments(run, Path("sweep"))
    assert arguments == ["seed=1", 'sweep.name="sweep"', *override, 'hydra.run.dir="sweep/seed-1"']

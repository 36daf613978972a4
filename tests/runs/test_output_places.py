"""Folders of results that cannot be created are refused before any work starts."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.runs.output_places import require_folders


@pytest.mark.parametrize("name", ["run_folder", "output_folder", "work_folder"])
@pytest.mark.parametrize("below", ["", "new/folder"])
def test_a_folder_in_the_place_of_a_file_is_refused(name: str, below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    message = f"{name} must be the path of a folder, got {folder}, but {tmp_path / 'file'} is no folder."
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        require_folders(OmegaConf.create({name: str(folder)}))


def test_the_output_of_an_export_may_be_a_file_but_not_below_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    require_folders(OmegaConf.create({"output": str(tmp_path / "file")}))  # the command says that it exists
    with pytest.raises(UserError, match=r"^output must be the path of a folder"):
        require_folders(OmegaConf.create({"output": str(tmp_path / "file" / "export")}))


def test_folders_that_exist_or_can_be_created_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"run_folder": str(tmp_path), "output_folder": "new/a", "work_folder": "~/new", "output": None}
    require_folders(OmegaConf.create(settings))
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the user who tests may be root
    message = f"output_folder must be a folder that can be written, got {tmp_path}/a: {tmp_path} is read-only."
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        require_folders(OmegaConf.create({"output_folder": f"{tmp_path}/a"}))
    require_folders(OmegaConf.create({"work_folder": f"{tmp_path}/a"}))  # an evaluation of image files writes nothing

"""Search for the run folders and checkpoints that settings such as `run` and `checkpoint` specify."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.paths import ROOT
from diffusion_lab.runs.load import load_config

NO_RUN = "`run` must be a run folder (run=logs/train/...), got no value."


@dataclass(frozen=True)
class Target:
    """A checkpoint file of a run, whose network is sampled or evaluated."""

    folder: Path
    checkpoint: Path

    @property
    def name(self) -> str:
        """Name of the run, followed by the name of the checkpoint unless it is last.ckpt."""
        is_last = self.checkpoint.name == "last.ckpt"
        return self.folder.name if is_last else f"{self.folder.name}_{self.checkpoint.stem}"


def find_targets(config: DictConfig) -> list[Target]:
    """Return the checkpoints that match the paths or globs `run` and `checkpoint`.

    Raises UserError if `run` is not given, if no run folder matches, or if a run has no matching checkpoint.
    """
    if OmegaConf.is_missing(config, "run"):
        raise UserError(NO_RUN)
    paths = config.run if OmegaConf.is_list(config.run) else [config.run]
    if not paths:
        raise UserError(NO_RUN)
    folders = [folder for path in paths for folder in _find_folders(str(path))]
    return [Target(folder, file) for folder in folders for file in _find_checkpoints(folder, str(config.checkpoint))]


def _find_folders(path: str) -> list[Path]:
    if not glob.has_magic(path) or Path(path).is_dir():
        return [Path(path).expanduser()]
    matches = map(Path, glob.glob(os.path.expanduser(path)))
    folders = sorted(match for match in matches if (match / "config.yaml").is_file())
    if not folders:
        raise UserError(f"run: no run folder matches {path}.")
    return folders


def _find_checkpoints(folder: Path, name: str) -> list[Path]:
    if not glob.has_magic(name):
        load_config(folder, name)
        return [folder / "checkpoints" / name]
    load_config(folder)
    files = sorted((folder / "checkpoints").glob(name))
    if not files:
        raise UserError(f"checkpoint: no file in {folder / 'checkpoints'} matches {name}.")
    return files


def find_run(name: str, value: str) -> tuple[Path, str]:
    """Return the run folder and the checkpoint's file name for a setting that is either a run folder or a checkpoint.

    If the setting is a run folder, the checkpoint is last.ckpt. A relative path is searched in the working directory
    and then in the folder that contains logs/.
    name: name of the setting, for the error message.  value: value of the setting.
    Raises UserError if the run folder has no config.yaml.
    """
    path = next((path for path in (Path(value).expanduser(), ROOT / value) if path.exists()), Path(value))
    folder, checkpoint = (path.parent.parent, path.name) if path.suffix == ".ckpt" else (path, "last.ckpt")
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"`{name}` must be a run folder or a checkpoint in one, got {value}: {folder / 'config.yaml'} is missing."
        )
    return folder, checkpoint

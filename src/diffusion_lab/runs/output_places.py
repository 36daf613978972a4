"""Folders to which commands write their results."""

import os
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lab.errors import UserError

FOLDERS = ("run_folder", "output_folder", "work_folder")
"""Settings with folders that a command creates, if they do not exist."""


def require_folders(config: DictConfig) -> None:
    """Raise UserError, before any work starts, unless the folders of a command exist or can be created."""
    for name in (*FOLDERS, "output"):
        if name not in config or config[name] is None:
            continue
        folder = Path(str(config[name])).expanduser().absolute()
        if name == "output":  # a new folder or file
            folder = folder.parent
        found = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not found.is_dir():
            raise UserError(f"{name} must be the path of a folder, got {config[name]}, but {found} is no folder.")
        if name != "work_folder" and not os.access(found, os.W_OK | os.X_OK):  # which not all commands write
            raise UserError(f"{name} must be a folder that can be written, got {config[name]}: {found} is read-only.")

"""The progress that a run has saved, which its next start does not repeat. Torch is not imported here."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.paths import default_cache_folder, expanduser

CHECKPOINTS = "checkpoints/*.ckpt"
"""Glob pattern of the checkpoints in a run folder."""

INCOMPLETE = (".partial", ".lock", ".claim")
"""Suffixes of files next to finished batches and caches that contain no progress."""

Place = tuple[Path, str]
"""A folder, and the glob pattern of the files in it that contain progress."""


def shared_places(config: DictConfig) -> list[Place]:
    """Return the places outside of the run folder to which a command saves finished batches and caches."""
    places = [(Path(config.work_folder), "*/*")] if "work_folder" in config else []
    chosen = OmegaConf.select(config, "data.cache_folder", throw_on_missing=False)
    cache = expanduser(chosen) if chosen else default_cache_folder()
    return [*places, (cache, "images/*"), (cache, "references/*")]


def saved_files(folder: Path, places: Sequence[Place] = ()) -> frozenset[tuple[str, int]]:
    """Return the names of the files that contain the saved progress of a run, with the times of its checkpoints.

    folder: run folder.  places: see `shared_places`; their files are never changed.
    """
    checkpoints = {(str(path), path.stat().st_mtime_ns) for path in folder.glob(CHECKPOINTS)}
    others = (path for place, pattern in places for path in place.glob(pattern))
    return frozenset(checkpoints | {(str(path), 0) for path in others if path.suffix not in INCOMPLETE})

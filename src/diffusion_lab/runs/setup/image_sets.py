"""The setting `images`: sets of images of unknown origin, such as the samples of other programs."""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.config.overrides import given_overrides, override_key
from diffusion_lab.errors import UserError
from diffusion_lab.files.image_folders import EXTENSIONS
from diffusion_lab.reporting.text import terminal_text

if TYPE_CHECKING:
    from diffusion_lab.data.sample_source import SampleSource

ARCHIVES = (".npz", ".zip")

ACCEPTED = "a folder of images, an .npz or .zip file of images, a glob pattern, or a list of these"

FILES = "an image file, a folder of images, an .npz or .zip file of images, or a glob pattern of image files"

SOURCES = f"a split of the run's data set, or {FILES}"
"""Accepted values of `images` for source images that are edited."""

OF_NETWORKS = (
    *("sampler", "time_grid", "clipping", "variance", "weights", "guidance_scale", "guidance", "guide", "classifier"),
    *("classifier_scale", "cascade", "cascade_steps", "low_resolution_noise", "label", "checkpoint", "seed"),
    *("keep_images", "work_folder", "num_pictures", "save_npz", "save_png"),
)
"""Settings of an evaluation that have an effect only if a network generates the images."""

OF_RUNS = {
    "MeanOverImages": "it is measured with a network",
    "ClassAccuracy": "it is measured on images that a network generates for a given class",
}
"""Classes of metrics that images of unknown origin do not have, with the reason."""


@dataclass(frozen=True)
class ImageSet:
    """A set of images that is measured.

    folder: folder or archive of the images, or the glob pattern that they match.
    files: the image files that match the pattern; None for a folder or an archive.
    """

    folder: Path
    files: tuple[str, ...] | None = None
    checkpoint: None = None

    @property
    def name(self) -> str:
        if self.files is not None:
            return self.folder.parent.name
        return self.folder.stem if self.folder.suffix in ARCHIVES else self.folder.name

    def source(self) -> "SampleSource":
        from diffusion_lab.data.sample_source import SampleSource

        return SampleSource(self.folder, self.files)


def find_image_sets(config: DictConfig) -> list[ImageSet]:
    """Return the sets of images that the setting `images` of a config names.

    Raises UserError if a value names no set, if none of its images can be read, or for a setting of OF_NETWORKS.
    """
    require_no_network(config, "images")
    values = config.images if OmegaConf.is_list(config.images) else [config.images]
    sets = list(dict.fromkeys(found for value in values for found in _find(str(value))))
    if not sets:
        raise UserError(f"`images` must be {ACCEPTED}, got no value.")
    try:
        for found in sets:
            found.source().first_size()
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return sets


def find_one_set(value: Any) -> ImageSet:
    """Return the set of images that a value of `images` names, which may be a single image file.

    Raises UserError if it names none or several.
    """
    path = os.path.abspath(os.path.expanduser(str(value)))
    if os.path.isfile(path) and _suffix(path) in EXTENSIONS:
        return ImageSet(Path(path), (path,))
    if OmegaConf.is_list(value):
        raise UserError(f"`images` must be {SOURCES}, got a list.")
    first, *others = _find(str(value), SOURCES)
    if others:
        raise UserError(f"`images` must be {SOURCES}, got {terminal_text(str(value))}, which matches several sets.")
    return first


def require_no_network(config: DictConfig, setting: str) -> None:
    """Raise UserError for a setting that needs the network of a run.  setting: setting that is used instead of `run`.

    Raises UserError also if `run` is given.
    """
    if config.run is not None:
        raise UserError(f"`run` must not be given together with `{setting}`, got run={config.run}.")
    for override in given_overrides():
        if override_key(override).partition(".")[0] in OF_NETWORKS:
            raise UserError(
                f"{override_key(override)} must not be given for `{setting}`, because no network generates images, got "
                f"{override}; run=RUN evaluates a network."
            )
    for name, node in config.metrics.items():
        kind = str(node.get("_target_", "")).rpartition(".")[2]
        if kind in OF_RUNS:
            names = "bound (nll)" if name == "bound" else name
            reason = f"because {OF_RUNS[kind]}; run=RUN names one"
            raise UserError(f"metrics must not contain {names} for `{setting}`, {reason}.")


def with_data_of_run(config: DictConfig) -> DictConfig:
    """Return `config`.  Raises UserError if it selects a data set, because a run has its own."""
    if "store" in config.data:
        given = next((override for override in given_overrides() if override_key(override) == "data"), "a data set")
        raise UserError(
            f"`data` must not be given for a run, which has its own data set, got {given}; data.path=FOLDER names the "
            "new place of moved images."
        )
    return config


def last_change(images: Any) -> float:
    """Return the time of the last change of the image files that the value of the setting `images` names.

    Raises UserError or FileNotFoundError if there are none.
    """
    values = images if OmegaConf.is_list(images) else [images]
    sources = [found.source() for value in values for found in _find(str(value))]
    return max((os.stat(file).st_mtime for source in sources for file in source.image_files()), default=0.0)


def is_given(setting: str) -> bool:
    """Return whether the command line of the running command contains a setting."""
    return any(override_key(override) == setting for override in given_overrides())


def _find(value: str, accepted: str = ACCEPTED) -> Iterator[ImageSet]:
    """Yield the sets that a value of `images` names.  accepted: accepted values, for error messages."""
    path = os.path.abspath(os.path.expanduser(value))
    if os.path.lexists(path):
        yield _set_at(path, value, accepted)
        return
    matches = [match for match in sorted(glob.glob(path)) if not os.path.basename(match).startswith(".")]
    files = [match for match in matches if os.path.isfile(match) and _suffix(match) in EXTENSIONS]
    if not matches:
        found = "matches nothing" if glob.has_magic(value) else "does not exist"
        raise UserError(f"`images` must be {accepted}, got {terminal_text(value)}, which {found}.")
    if files and len(files) < len(matches):
        other = next(match for match in matches if match not in files)
        raise UserError(
            f"`images` must be {accepted}, got {terminal_text(value)}, which matches both image files and "
            f"{terminal_text(other)}."
        )
    if files:
        yield ImageSet(Path(path), tuple(files))
        return
    yield from (_set_at(match, value, accepted) for match in matches)


def _set_at(path: str, value: str, accepted: str) -> ImageSet:
    if os.path.isdir(path) or (os.path.isfile(path) and _suffix(path) in ARCHIVES):
        return ImageSet(Path(path))
    if os.path.isfile(path) and _suffix(path) in EXTENSIONS:
        raise UserError(f"`images` must be {accepted}, got the single image {terminal_text(value)}.")
    kind = "a file of another format" if os.path.isfile(path) else "not a folder or a regular file"
    raise UserError(f"`images` must be {accepted}, got {terminal_text(path)}, which is {kind}.")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()

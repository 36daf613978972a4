"""Setup of the reference of an evaluation: the setting `reference` -> the set that samples are compared with.

Torch is imported inside functions, so that invalid settings are rejected without its import time.
"""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from diffusion_lab.errors import UserError
from diffusion_lab.files.image_folders import SPLITS
from diffusion_lab.paths import expanduser
from diffusion_lab.reporting.text import terminal_text
from diffusion_lab.runs.find import find_place, run_of
from diffusion_lab.runs.load import instantiate_node, load_config, resolve
from diffusion_lab.runs.setup.image_sets import ARCHIVES

if TYPE_CHECKING:
    from diffusion_lab.data.image_store import ImageStore
    from diffusion_lab.data.sample_source import SampleSource
    from diffusion_lab.evaluation.reference import Reference
    from diffusion_lab.evaluation.training_reference import TrainingReference
    from diffusion_lab.metrics.metric import Metric

STATISTICS = (".npz", ".pt", ".pth")
"""Suffixes of files that may contain statistics."""

FILES = "a folder of images, an .npz or .zip file of images, a statistics file (.npz or .pt), or a run folder"


@dataclass(frozen=True)
class SampleFormat:
    """Format to which sets of samples are decoded.

    channels: number of channels.  resolution: side length; None for that of the first image of each set.
    fit, resample, on_error: settings of `preparation`, see `Preparation` and `ImageStore`.
    """

    channels: int
    resolution: int | None
    fit: Literal["pad", "resize", "adm", "exact"] = "exact"
    resample: Literal["bicubic", "lanczos", "box"] = "bicubic"
    on_error: Literal["skip", "raise"] = "raise"

    @classmethod
    def of(cls, node: DictConfig, channels: int, resolution: int | None) -> "SampleFormat":
        """Return the format with the settings of the config node `preparation`, whose resolution has precedence.

        Raises UserError for a value that is not accepted.
        """
        settings: dict[str, Any] = {str(key): value for key, value in node.items() if value is not None}
        given = settings.pop("resolution", resolution)
        if given is not None and (type(given) is not int or given < 1):
            raise UserError(f"preparation.resolution must be a whole number of at least 1, got {given}.")
        if settings.get("on_error") not in ("skip", "raise"):
            raise UserError(f"preparation.on_error must be skip or raise, got {settings.get('on_error')}.")
        return cls(channels, given, **settings)

    def store(self, source: "SampleSource") -> "ImageStore":
        """Return the store of the images of a source.  Raises ValueError if its first image cannot be read."""
        from diffusion_lab.data.decoding import Preparation
        from diffusion_lab.data.image_store import ImageStore

        resolution = self.resolution or source.first_side()
        try:
            preparation = Preparation(self.channels, resolution, self.fit, self.resample)
        except ValueError as error:
            raise UserError(f"preparation.{error}") from error
        return ImageStore.of_source(source, preparation, on_error=self.on_error)

    def protocol(self, resolution: int) -> dict[str, Any]:
        """Return the settings that determine the decoded images, for fingerprints."""
        resample = {"resample": self.resample} if self.fit == "resize" else {}
        return {"channels": self.channels, "resolution": resolution, "fit": self.fit} | resample


def run_store(value: str) -> tuple[DictConfig, "ImageStore"] | None:
    """Return the config and the data set of the run that a value names; None if it names no run.

    A split, or a file or folder with this name that is no run, has precedence: logs/train is no run, either.
    """
    path, kind = expanduser(value), run_of("train")
    if value in (*SPLITS, "held_out") or (path.exists() and not kind.is_one(path)):
        return None
    with contextlib.suppress(UserError):
        folder = find_place("reference", value, kind).folder
        config = resolve(OmegaConf.masked_copy(load_config(folder), ["data", "features"]))
        return config, instantiate_node(config.data.store, "data")
    return None


def build_reference(value: str, store: "ImageStore | None", sample_format: SampleFormat) -> "Reference":
    """Return the set that the setting `reference` names.

    value: split of `store`, or a path; see FILES.  store: data set of the run or of the setting `data`; None without.
    Raises ValueError or FileNotFoundError if there is no such set, or if it cannot be read.
    """
    from diffusion_lab.data.image_store import load_images
    from diffusion_lab.data.npz_arrays import SAMPLES, array_names
    from diffusion_lab.data.sample_source import SPLIT, SampleSource
    from diffusion_lab.evaluation.reference import FileReference, ImageReference

    if store is not None and (value == "train" or value in store.splits()):
        return ImageReference(load_images(store, value), value, store.cache.references)
    path = expanduser(value)
    suffix = path.suffix.lower()
    if suffix in STATISTICS and not path.is_dir():
        names = array_names(path) if suffix == ".npz" else set()
        if SAMPLES not in names or names & {"mu", "mu_s", "rows", "feats"}:
            return FileReference(path)
    found = run_store(value)
    if found is not None:
        return ImageReference(found[1].load("train"), "train", found[1].cache.references)
    if path.is_dir() or (suffix in ARCHIVES and path.is_file()):
        samples = sample_format.store(SampleSource(path.absolute(), setting="reference"))
        return ImageReference(samples.load(SPLIT), set_name(path), samples.cache.references)
    split = "split of a data set" if store is None else f"split ({', '.join(store.splits())})"
    raise ValueError(f"`reference` must be a {split} or a path: {FILES}, got {terminal_text(value)}.")


def build_training(metrics: "Sequence[Metric]", store: "ImageStore") -> "TrainingReference | None":
    """Return the training and held-out images of a data set; None if no metric needs them.

    Raises ValueError if the set has no held-out images, or too few.
    """
    from diffusion_lab.evaluation.training_reference import TrainingReference

    if not any(metric.needs_held_out for metric in metrics):
        return None
    return TrainingReference.of(store)


def require_path(value: str) -> None:
    """Raise UserError, before anything is built, if `reference` is no path and no data set is selected."""
    if not expanduser(value).exists():
        raise UserError(
            f"`reference` must be a path ({FILES}) or, with data=NAME, a split of this data set, got "
            f"{terminal_text(value)} without a data set."
        )


def set_name(path: Path) -> str:
    """Return the name of a set of images in the names of metric values."""
    stem = path.stem if path.suffix.lower() in ARCHIVES else path.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")[:50] or "images"

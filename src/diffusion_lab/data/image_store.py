"""Image sets from the Hugging Face hub or a local folder, decoded once to uint8 images of one size and labels."""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diffusion_lab.contracts import described
from diffusion_lab.data import decoding
from diffusion_lab.data.building import Damage, Decoder, decode_split, remove_damaged
from diffusion_lab.data.decoding import Preparation, WrongSizeError
from diffusion_lab.data.image_cache import DAMAGED, LABELS, PIXELS, Entry, ImageCache, Meta
from diffusion_lab.data.image_files import UndecodedImages, file_name, read_sizes
from diffusion_lab.data.image_source import ImageSource
from diffusion_lab.data.images import Images, content_fingerprint
from diffusion_lab.data.sample_source import SampleSource
from diffusion_lab.data.selection import Selection
from diffusion_lab.data.table_checks import require_disk
from diffusion_lab.files.image_folders import counted
from diffusion_lab.paths import expanduser
from diffusion_lab.reporting.csv_files import write_csv
from diffusion_lab.reporting.text import terminal_text

if TYPE_CHECKING:
    from diffusion_lab.data.pairs import PairedFolder

logger = logging.getLogger(__name__)

__all__ = ["ImageStore", "Images"]

ON_ERROR = ("skip", "raise")

DAMAGED_IMAGES = "damaged"
"""Reason for which images are left out that cannot be decoded."""


class ImageStore:
    """Access to an image set: its source, the conversion of its images to one size, and the selection of images.

    hub_name: NAME or NAME:CONFIG on the Hugging Face hub, used if `path` is None.
    path: local folder of parquet files or images.
    image_root: folder below which image files may lie that a table names; None allows only files in the set's folder.
    image_column, label_column: names of the columns; if label_column is None, all images get label 0.
    channels, resolution, fit, resample: arguments of `Preparation`.
    on_error: treatment of damaged images: "skip" leaves them out and lists them in damaged.csv in the cache; "raise"
        raises ValueError.
    cache_folder: folder for decoded sets; None uses the environment variable DIFFUSION_LAB_CACHE or, if it is not set,
        ~/.cache/diffusion_lab.
    selection: selection of the images that are used; None uses all images.
    """

    def __init__(
        self,
        hub_name: str | None,
        path: str | os.PathLike[str] | None = None,
        *,
        image_root: str | os.PathLike[str] | None = None,
        image_column: str = "image",
        label_column: str | None = "label",
        channels: int = 3,
        resolution: int = 32,
        fit: Literal["pad", "resize", "adm", "exact"] = "resize",
        resample: Literal["bicubic", "lanczos", "box"] = "bicubic",
        on_error: Literal["skip", "raise"] = "skip",
        cache_folder: str | os.PathLike[str] | None = None,
        selection: Selection | None = None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error}.")
        local = None if path is None else expanduser(path)
        root = None if image_root is None else expanduser(image_root)
        self.source: ImageSource | SampleSource | PairedFolder = ImageSource(
            hub_name, local, image_column, label_column, root
        )
        self.preparation = Preparation(channels, resolution, fit, resample)
        self.on_error, self.cache = on_error, ImageCache(None if cache_folder is None else Path(cache_folder))
        self.selection = selection or Selection()
        self._reported: set[str] = set()

    @classmethod
    def of_source(
        cls,
        source: "SampleSource | PairedFolder | ImageSource",
        preparation: Preparation,
        *,
        on_error: Literal["skip", "raise"] = "raise",
        cache_folder: str | os.PathLike[str] | None = None,
    ) -> "ImageStore":
        """Return the store of another source, such as a set of samples, whose only split is `sample_source.SPLIT`."""
        store = cls(None, on_error=on_error, cache_folder=cache_folder)
        store.source, store.preparation = source, preparation
        return store

    def locate(self) -> None:
        """Raise FileNotFoundError if the set can neither be found locally nor downloaded."""
        replace(self.source).locate()

    def splits(self) -> list[str]:
        """Return the names of the splits that can be loaded.

        Raises FileNotFoundError if the set is missing, and ValueError if it is not an image set.
        """
        return [*replace(self.source).splits(), *(["held_out"] if self.selection.num_held_out else [])]

    def original_sizes(self, split: str = "train", max_images: int = 50_000) -> np.ndarray:
        """Return width and height of the images of a split before their conversion: int64 [N, 2].

        max_images: largest number of images whose sizes are read; more images are sampled evenly.
        Images that cannot be read are left out. Raises the same errors as `load`.
        """
        source = replace(self.source)
        with TemporaryDirectory() as work_folder:
            images = source.open(self.selection.source_split(split), Path(work_folder)).images
            return read_sizes(images, max_images)

    def load(self, split: str = "train") -> Images:
        """Load the split "train", the split "held_out" (a part of train), or any other split of the set.

        Raises ValueError if the split, a column or a class is missing; FileNotFoundError if the set is missing.
        """
        source_split = self.selection.source_split(split)
        entry, left_out, level = self._load_source(source_split)
        images = entry.images()
        for reason, selected in self.selection.steps(images, split):
            left_out[reason] += len(images) - len(selected)
            images = selected
        self._report(images, split, left_out, level, entry.folder / DAMAGED if entry.meta.num_damaged else None)
        return images

    def load_numbered(self, split: str) -> tuple[Images, np.ndarray]:
        """Load all images of a split of the source that are not damaged, whatever the selection.

        Returns the images, and the index of each of them in the split, int64 [N].
        """
        entry = self._load_source(split)[0]
        return entry.images(), entry.numbers()

    def _load_source(self, split: str) -> tuple[Entry, Counter[str], str]:
        """Load all images of a split that are not damaged, through the cache.

        Returns the cache entry, the number of left-out files by reason, and the level of nested class folders.
        """
        source = replace(self.source)  # lists a folder of images once for this call, and again in the next call
        source.locate()
        entry = self.cache.entry(self._cache_key(source, split), lambda folder: self._build(source, split, folder))
        if entry.meta.num_damaged and self.on_error == "raise":
            raise ValueError(self._damage_message(entry.meta.first_damage))
        damaged = Counter({DAMAGED_IMAGES: entry.meta.num_damaged})
        content = source.folder
        return entry, source.left_out(entry.meta.shape[0]) + damaged, "" if content is None else content.class_level

    def _report(
        self, images: Images, split: str, left_out: Counter[str], class_level: str, damaged: Path | None
    ) -> None:
        """Log the number of images that are used and that are left out, the first time that a split is loaded.

        damaged: file that lists the damaged images, whose message is a warning; None if no image is damaged.
        A set that is no folder of images has no message if all its images are used.
        """
        message = f"{self.source} ({split}): {counted(len(images), 'image')} {'is' if len(images) == 1 else 'are'} used"
        if images.class_names:
            num_used, num_classes = len(np.unique(images.label.numpy())), len(images.class_names)
            message += f" in {'' if num_used == num_classes else f'{num_used} of '}{counted(num_classes, 'class')}"
        if class_level:
            names = ", ".join(images.class_names[:5]) + (", ..." if len(images.class_names) > 5 else "")
            message += f"; folders are nested: the classes are the {class_level} folders ({names})"
        listed = {DAMAGED_IMAGES: f", listed in {damaged}"}
        reasons = [f"{count:,} ({reason}{listed.get(reason, '')})" for reason, count in left_out.items() if count]
        message += f"; left out: {', '.join(reasons)}." if reasons else "; no image is left out."
        message = terminal_text(message)
        if message not in self._reported and (reasons or self.source.folder is not None):
            self._reported.add(message)
            level = logging.INFO if damaged is None else logging.WARNING
            logger.log(level, message, extra={"once": True})  # a command may build several stores of the same set

    def _cache_key(self, source: "ImageSource | SampleSource | PairedFolder", split: str) -> str:
        """Return the cache key of a split: it depends on files, columns, preparation and decoder version."""
        columns = [source.image_column, source.label_column]
        parts = [source.identity(split), split, columns, asdict(self.preparation), decoding.VERSION]
        parts += source.layout(split)
        name, split = (re.sub(r"[^A-Za-z0-9_.]+", "-", text) for text in (Path(str(source)).name, split))
        name = name.strip("-.")[:40]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
        return f"{name}-{split}-{self.preparation.resolution}-{digest}"

    def _build(self, source: "ImageSource | SampleSource | PairedFolder", split: str, folder: Path) -> Meta:
        """Decode a split into an empty folder of the cache."""
        work_folder = folder / "datasets"
        rows = source.open(split, work_folder)
        size, decoder = len(rows.label), Decoder(rows.images, self.preparation, folder / PIXELS)
        require_disk(size * math.prod(self.preparation.shape), folder)
        try:
            damaged = decode_split(
                decoder, f"preparing {self.source} ({split})", lambda damaged: self._check_damage(damaged, rows.images)
            )
        except WrongSizeError as error:
            side = self.preparation.resolution
            raise ValueError(
                f"{source} must contain only images of {side} x {side} pixels for {self._settings}.fit=exact, but "
                f"{error}; {self._settings}.fit=resize crops and resizes images."
            ) from None
        if 2 * len(damaged) > size:
            raise ValueError(
                f"{len(damaged):,} of the {size:,} images in {self.source} cannot be read, which is more than half; "
                f"the first is {self._described(damaged[0], rows.images).replace(': ', ' (', 1)})."
            )
        kept = remove_damaged(folder / PIXELS, self.preparation.shape, size, damaged)
        label = rows.label[kept].astype("<i8")
        label.tofile(folder / LABELS)
        _write_damage(folder, damaged, [file_name(rows.images, damage.number) for damage in damaged])
        shape = (len(kept), *self.preparation.shape)
        fingerprint = content_fingerprint(np.memmap(folder / PIXELS, np.uint8, "r", shape=shape), label)
        origin = {"source": str(self.source), "split": split, **asdict(self.preparation)}
        first = self._described(damaged[0], rows.images) if damaged else ""
        shutil.rmtree(work_folder, ignore_errors=True)
        return Meta(shape, rows.class_names, fingerprint, len(damaged), first, origin)

    def _check_damage(self, damaged: list[Damage], images: UndecodedImages) -> None:
        if damaged and self.on_error == "raise":
            raise ValueError(self._damage_message(self._described(damaged[0], images)))

    def _described(self, damage: Damage, images: UndecodedImages) -> str:
        """Return the number of a damaged image, for samples also its name, and the reason."""
        name = f", {file_name(images, damage.number)}" if isinstance(self.source, SampleSource) else ""
        return terminal_text(f"number {damage.number}{name}: {damage.reason}")

    @property
    def _settings(self) -> str:
        """Name of the node of a config that contains the settings of the preparation."""
        return "preparation" if isinstance(self.source, SampleSource) else "data"

    def _damage_message(self, first: str) -> str:
        return (
            f"{self.source} contains an image that cannot be read ({first}); "
            f"set {self._settings}.on_error=skip to leave out unreadable images."
        )


def require_store(store: Any, name: str = "store") -> None:
    """Raise ValueError unless `store` has the methods of an `ImageStore`.  name: name of the argument or setting."""
    missing = [method for method in ("locate", "splits", "load", "cache") if not hasattr(store, method)]
    is_class = isinstance(store, type)
    if missing or is_class:
        lacks = "" if is_class else f", which has no {' and no '.join(missing)}"
        raise ValueError(
            f"`{name}` must be a diffusion_lab.ImageStore, got {described(store)}{lacks}; class MyStore(ImageStore) "
            "defines splits(), which returns the names of the splits, and load(split), which returns "
            "diffusion_lab.Images(pixels, label, class_names)."
        )


def load_images(store: ImageStore, split: str) -> Images:
    """Return the images of a split, see `ImageStore.load`.

    Raises the errors of `load`; ValueError of a store of another package names its class.
    """
    try:
        images = store.load(split)
    except ValueError as error:
        if type(store).__module__.partition(".")[0] == "diffusion_lab":
            raise
        raise ValueError(f"`load` of {type(store).__name__} failed for the split {split}: {error}") from error
    return _require_images(images, store, split)


def require_filled(images: Images, store: ImageStore, split: str) -> Images:
    """Return `images`.  Raises ValueError if they are empty.  store, split: see `_require_images`."""
    if not len(images):
        raise ValueError(f"`load` of {type(store).__name__} must return at least one image for the split {split}.")
    return images


def _require_images(images: Any, store: ImageStore, split: str) -> Images:
    """Return `images`.  Raises ValueError unless they are an `Images`.

    store, split: the store, and the argument of its method `load`, that returned the images.
    """
    if not isinstance(images, Images):
        raise ValueError(
            f"`load` of {type(store).__name__} must return diffusion_lab.Images(pixels, label, class_names), got "
            f"{described(images)} for the split {split}."
        )
    return images


def _write_damage(folder: Path, damaged: list[Damage], names: list[str]) -> None:
    if damaged:
        rows = [(damage.number, name, damage.reason) for damage, name in zip(damaged, names, strict=True)]
        write_csv(folder / DAMAGED, ("number", "file", "reason"), rows)

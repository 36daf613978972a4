"""Image sets from the Hugging Face hub or a local folder, decoded once to uint8 images of one size and labels."""

import csv
import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffusion_lab.contracts import described
from diffusion_lab.data import decoding
from diffusion_lab.data.building import Damage, Decoder, decode_split, remove_damaged
from diffusion_lab.data.decoding import Preparation
from diffusion_lab.data.image_cache import DAMAGED, LABELS, PIXELS, Entry, ImageCache, Meta
from diffusion_lab.data.image_source import ImageSource, file_name
from diffusion_lab.data.images import Images, content_fingerprint
from diffusion_lab.data.selection import Selection

logger = logging.getLogger(__name__)

__all__ = ["ImageStore", "Images"]

ON_ERROR = ("skip", "raise")


class ImageStore:
    """Access to an image set: its source, the conversion of its images to one size, and the selection of images.

    hub_name: NAME or NAME:CONFIG on the Hugging Face hub, used if `path` is None.
    path: local folder of parquet files or images.
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
        image_column: str = "image",
        label_column: str | None = "label",
        channels: int = 3,
        resolution: int = 32,
        fit: Literal["pad", "resize", "adm"] = "resize",
        resample: Literal["bicubic", "lanczos", "box"] = "bicubic",
        on_error: Literal["skip", "raise"] = "skip",
        cache_folder: str | os.PathLike[str] | None = None,
        selection: Selection | None = None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error}.")
        local = None if path is None else Path(path).expanduser()
        self.source = ImageSource(hub_name, local, image_column, label_column)
        self.preparation = Preparation(channels, resolution, fit, resample)
        self.on_error, self.cache = on_error, ImageCache(None if cache_folder is None else Path(cache_folder))
        self.selection = selection or Selection()

    def locate(self) -> None:
        """Raise FileNotFoundError if the set can neither be found locally nor downloaded."""
        self.source.locate()

    def splits(self) -> list[str]:
        """Return the names of the splits that can be loaded.

        Raises FileNotFoundError if the set is missing, and ValueError if it is not an image set.
        """
        return [*self.source.splits(), *(["held_out"] if self.selection.num_held_out else [])]

    def load(self, split: str = "train") -> Images:
        """Load the split "train", the split "held_out" (a part of train), or any other split of the set.

        Raises ValueError if the split, a column or a class is missing; FileNotFoundError if the set is missing.
        """
        return self.selection.apply(self._load_source(self.selection.source_split(split)), split)

    def _load_source(self, split: str) -> Images:
        """Load all images of a split that are not damaged, through the cache."""
        self.locate()
        entry = self.cache.entry(self._cache_key(split), lambda folder: self._build(split, folder))
        if entry.meta.num_damaged:
            self._report_damage(entry)
        return entry.images()

    def _cache_key(self, split: str) -> str:
        """Return the cache key of a split: it depends on files, columns, preparation and decoder version."""
        columns = [self.source.image_column, self.source.label_column]
        parts = [self.source.identity(split), split, columns, asdict(self.preparation), decoding.VERSION]
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(str(self.source)).name).strip("-.")[:40]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
        return f"{name}-{split}-{self.preparation.resolution}-{digest}"

    def _build(self, split: str, folder: Path) -> Meta:
        """Decode a split into an empty folder of the cache."""
        work_folder = folder / "datasets"
        rows = self.source.open(split, work_folder)
        size, decoder = len(rows.label), Decoder(rows.dataset, self.preparation, folder / PIXELS)
        damaged = decode_split(decoder, f"preparing {self.source} ({split})", self._check_damage)
        if 2 * len(damaged) > size:
            raise ValueError(
                f"{len(damaged):,} of the {size:,} images in {self.source} cannot be read, which is more than half; "
                f"the first is number {damaged[0].number} ({damaged[0].reason})."
            )
        kept = remove_damaged(folder / PIXELS, self.preparation.shape, size, damaged)
        label = rows.label[kept].astype("<i8")
        label.tofile(folder / LABELS)
        _write_damage(folder, damaged, [file_name(rows.dataset, damage.number) for damage in damaged])
        shape = (len(kept), *self.preparation.shape)
        fingerprint = content_fingerprint(np.memmap(folder / PIXELS, np.uint8, "r", shape=shape), label)
        origin = {"source": str(self.source), "split": split, **asdict(self.preparation)}
        first = f"number {damaged[0].number}: {damaged[0].reason}" if damaged else ""
        shutil.rmtree(work_folder, ignore_errors=True)
        return Meta(shape, rows.class_names, fingerprint, len(damaged), first, origin)

    def _check_damage(self, damaged: list[Damage]) -> None:
        if damaged and self.on_error == "raise":
            raise ValueError(self._damage_message(f"number {damaged[0].number}: {damaged[0].reason}"))

    def _damage_message(self, first: str) -> str:
        return (
            f"{self.source} contains an image that cannot be read ({first}); "
            "set data.on_error=skip to leave out unreadable images."
        )

    def _report_damage(self, entry: Entry) -> None:
        """Log a warning or raise ValueError for a set with damaged images, including sets that were already cached."""
        if self.on_error == "raise":
            raise ValueError(self._damage_message(entry.meta.first_damage))
        logger.warning(
            f"{self.source} contains {entry.meta.num_damaged:,} images that cannot be read; the other "
            f"{entry.meta.shape[0]:,} are used; {entry.folder / DAMAGED} lists the unreadable images."
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


def require_images(images: Any, store: ImageStore, split: str) -> Images:
    """Return `images`.  Raises ValueError unless they are an `Images` that is not empty.

    store, split: the store, and the argument of its method `load`, that returned the images.
    """
    if not isinstance(images, Images):
        raise ValueError(
            f"`load` of {type(store).__name__} must return diffusion_lab.Images(pixels, label, class_names), got "
            f"{described(images)} for the split {split}."
        )
    if not len(images):
        raise ValueError(f"`load` of {type(store).__name__} must return at least one image for the split {split}.")
    return images


def _write_damage(folder: Path, damaged: list[Damage], names: list[str]) -> None:
    if damaged:
        with (folder / DAMAGED).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("number", "file", "reason"))
            table.writerows((damage.number, name, damage.reason) for damage, name in zip(damaged, names, strict=True))

"""Any Hugging Face image set, by hub name or from a local folder -> uint8 images and labels, decoded once."""

import csv
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from diffusion_lab.data import decoding
from diffusion_lab.data.building import Damage, Decoder, close_gaps, decode
from diffusion_lab.data.decoding import Preparation
from diffusion_lab.data.image_cache import DAMAGED, LABELS, PIXELS, Entry, ImageCache, Meta
from diffusion_lab.data.image_source import ImageSource, file_name
from diffusion_lab.data.images import Images, content_fingerprint
from diffusion_lab.randomness import permutation

__all__ = ["ImageStore", "Images"]

ON_ERROR = ("skip", "raise")


class ImageStore:
    """Where a set's images are, how they become squares of one size, and which of them are used.

    hub_name: NAME or NAME:CONFIG on the Hugging Face hub, used where `path` is None.  path: local folder of parquet
    files or images.  image_column, label_column: their names in the set; label_column None gives label 0 to all.
    channels, resolution, fit, resample: see `Preparation`.  on_error: "skip" leaves damaged images out and counts them.
    cache_folder: of decoded sets; None is DIFFUSION_LAB_CACHE, or ~/.cache/diffusion_lab.

    What is used is chosen in this order, always the same for any seed:
    num_held_out: random images of the train split that are set aside as split "held_out".
    classes: names of the only classes to keep; None keeps all.
    max_images: of the train split, a random part of what is left; None keeps all.
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
        num_held_out: int = 0,
        classes: Sequence[str] | None = None,
        max_images: int | None = None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error}.")
        if num_held_out < 0:
            raise ValueError(f"num_held_out must be at least 0, got {num_held_out}.")
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images must be at least 1 or null, got {max_images}.")
        local = None if path is None else Path(path).expanduser()
        self.source = ImageSource(hub_name, local, image_column, label_column)
        self.preparation = Preparation(channels, resolution, fit, resample)
        self.on_error, self.cache = on_error, ImageCache(None if cache_folder is None else Path(cache_folder))
        self.num_held_out, self.max_images = num_held_out, max_images
        self.classes = None if classes is None else tuple(classes)

    def locate(self) -> None:
        """Raises FileNotFoundError, saying what was looked for and how to get it, unless the set is within reach."""
        self.source.locate()

    def splits(self) -> list[str]:
        """The splits that can be loaded.  Raises as `load`."""
        return [*self.source.splits(), *(["held_out"] if self.num_held_out else [])]

    def load(self, split: str = "train") -> Images:
        """The images of "train", of "held_out" (a part of train), or of any other split that the set has.

        Raises ValueError where the set has no such split, columns or classes; FileNotFoundError where it is missing.
        """
        if split == "held_out" and not self.num_held_out:
            raise ValueError("data.num_held_out must be above 0 to ask for held-out images, got 0.")
        images = self._whole("train" if split == "held_out" else split)
        if self.num_held_out and split in ("train", "held_out"):
            images = self._part(images, split)
        if self.classes is not None:
            images = images.select(np.flatnonzero(np.isin(images.label.numpy(), self._wanted(images.class_names))))
        if split == "train" and self.max_images is not None and self.max_images < len(images):
            order = permutation(seed=0, epoch=1, size=len(images))  # the same for all runs, as what is held out
            images = images.select(np.sort(order[: self.max_images]))
        return images

    def _whole(self, split: str) -> Images:
        """All images of a split that are not damaged, from the cache."""
        self.locate()
        entry = self.cache.entry(self._key(split), lambda folder: self._build(split, folder))
        if entry.meta.num_damaged:
            self._tell(entry)
        return entry.images()

    def _key(self, split: str) -> str:
        """A name that is another one for other files, columns, preparation or decoding."""
        columns = [self.source.image_column, self.source.label_column]
        parts = [self.source.identity(split), split, columns, asdict(self.preparation), decoding.VERSION]
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(str(self.source)).name).strip("-.")[:40]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]
        return f"{name}-{split}-{self.preparation.resolution}-{digest}"

    def _build(self, split: str, folder: Path) -> Meta:
        """Decodes a split into a fresh folder."""
        work_folder = folder / "datasets"
        rows = self.source.open(split, work_folder)
        size, decoder = len(rows.label), Decoder(rows.dataset, self.preparation, folder / PIXELS)
        damaged = decode(decoder, f"preparing {self.source} ({split})", self._refuse_damage)
        if 2 * len(damaged) > size:
            raise ValueError(
                f"{self.source} holds {len(damaged):,} images of {size:,} that cannot be read, more than half; the "
                f"first is number {damaged[0].number}: {damaged[0].reason}."
            )
        kept = close_gaps(folder / PIXELS, self.preparation.shape, size, damaged)
        label = rows.label[kept].astype("<i8")
        label.tofile(folder / LABELS)
        names = [file_name(rows.dataset, damage.number) for damage in damaged]
        _list_damage(folder, damaged, names)
        shape = (len(kept), *self.preparation.shape)
        fingerprint = content_fingerprint(np.memmap(folder / PIXELS, np.uint8, "r", shape=shape), label)
        origin = {"source": str(self.source), "split": split, **asdict(self.preparation)}
        first = f"number {damaged[0].number}: {damaged[0].reason}" if damaged else ""
        shutil.rmtree(work_folder, ignore_errors=True)
        return Meta(shape, rows.class_names, fingerprint, len(damaged), first, origin)

    def _refuse_damage(self, damaged: list[Damage]) -> None:
        if damaged and self.on_error == "raise":
            raise ValueError(self._refusal(f"{damaged[0].number}: {damaged[0].reason}"))

    def _refusal(self, first: str) -> str:
        return (
            f"{self.source} holds an image that cannot be read, near number {first}; "
            "data.on_error=skip leaves such images out."
        )

    def _tell(self, entry: Entry) -> None:
        """Of damaged images in a set that was built, now or earlier."""
        if self.on_error == "raise":
            raise ValueError(self._refusal(entry.meta.first_damage.removeprefix("number ")))
        print(
            f"warning: {self.source} holds {entry.meta.num_damaged:,} images that cannot be read; the other "
            f"{entry.meta.shape[0]:,} are used; {entry.folder / DAMAGED} lists them.",
            file=sys.stderr,
        )

    def _part(self, images: Images, split: str) -> Images:
        if self.num_held_out >= len(images):
            raise ValueError(
                f"data.num_held_out must be under the set's {len(images)} images, got {self.num_held_out}."
            )
        order = permutation(seed=0, epoch=0, size=len(images))  # not the run's seed: runs must agree
        kept = order[self.num_held_out :] if split == "train" else order[: self.num_held_out]
        return images.select(np.sort(kept))

    def _wanted(self, names: tuple[str, ...]) -> list[int]:
        """The numbers of the classes to keep."""
        classes = self.classes or ()
        if not classes or any(name not in names for name in classes):
            raise ValueError(f"data.classes must be among {', '.join(names)}, got {', '.join(classes)}.")
        return [names.index(name) for name in classes]


def _list_damage(folder: Path, damaged: list[Damage], names: list[str]) -> None:
    if damaged:
        with (folder / DAMAGED).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("number", "file", "reason"))
            table.writerows((damage.number, name, damage.reason) for damage, name in zip(damaged, names, strict=True))

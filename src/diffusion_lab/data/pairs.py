"""Paired images: a second image set that has a condition image for each image, such as edges for photographs."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from diffusion_lab.data.image_files import ImageFiles
from diffusion_lab.data.image_source import ImageSource, Rows
from diffusion_lab.data.image_store import ImageStore, load_images
from diffusion_lab.data.images import Images
from diffusion_lab.files import image_folders
from diffusion_lab.files.image_folders import counted
from diffusion_lab.paths import expanduser
from diffusion_lab.reporting.text import terminal_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Place of the condition images of an image-to-image network: one for each image of a set.

    column: name of the column of the condition images in a table that contains the images in another column.
    path: folder that has, for each image file of the set, an image file with the same name, in the same subfolder. The
        extensions may differ.
    channels: number of channels of the condition images, 1 (gray) or 3 (RGB). The condition images are prepared like
        the images in all other respects.
    Without column and path, there are no condition images. The column, or the folder, of the images is also accepted,
    so that a network learns to color gray images.
    """

    column: str | None = None
    path: str | os.PathLike[str] | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if self.column is not None and self.path is not None:
            raise ValueError(
                "data.condition_column must be null if data.condition_path is given, got "
                f"{self.column} and {terminal_text(str(self.path))}."
            )
        if self.channels not in (1, 3):
            raise ValueError(f"data.condition_channels must be 1 (gray) or 3 (RGB), got {self.channels}.")

    @property
    def is_given(self) -> bool:
        """Whether there are condition images."""
        return self.column is not None or self.path is not None

    @property
    def setting(self) -> str:
        """Setting and value that select the condition images."""
        return f"data.condition_column={self.column}" if self.path is None else f"data.condition_path={self.path}"

    def load(self, store: ImageStore, split: str) -> Images:
        """Return the images of a split, see `ImageStore.load`, with their condition images if they are given.

        store: store of the images.  Images whose condition image is damaged are left out.
        Raises ValueError or FileNotFoundError if an image has no condition image.
        """
        images = load_images(store, split)
        if not self.is_given:
            return images
        source_split, partners = store.selection.source_split(split), self._store(store)
        partners.locate()
        numbers = store.load_numbered(source_split)[1][images.index]
        condition, condition_numbers = partners.load_numbered(source_split)
        position = np.searchsorted(condition_numbers, numbers).clip(max=len(condition_numbers) - 1)
        is_found = condition_numbers[position] == numbers
        if not is_found.all():
            message = "%s (%s): %s left out, because the condition image cannot be read."
            left_out = counted(int((~is_found).sum()), "image")
            logger.warning(message, partners.source, split, f"{left_out} {'is' if left_out == '1 image' else 'are'}")
            images, position = images.select(np.flatnonzero(is_found)), position[is_found]
        return images.with_condition(condition.select(position))

    def _store(self, store: ImageStore) -> ImageStore:
        """Return the store of the condition images of all images in `store`."""
        if not isinstance(store.source, ImageSource) or type(store).load is not ImageStore.load:
            raise ValueError(f"{self.setting} requires a diffusion_lab.ImageStore, got {type(store).__name__}.")
        source = replace(store.source)
        if self.path is not None:
            partners: PairedFolder | ImageSource = PairedFolder(source, expanduser(self.path))
        elif source.folder is not None:
            raise ValueError(
                f"data.condition_column must be null for a folder of image files ({source.setting}), got "
                f"{self.column}; data.condition_path=FOLDER names a second folder with files of the same names."
            )
        else:
            assert self.column is not None
            partners = replace(source, image_column=self.column, image_key="data.condition_column")
        return ImageStore.of_source(
            partners,
            replace(store.preparation, channels=self.channels),
            on_error=store.on_error,
            cache_folder=store.cache.folder,
        )


@dataclass(frozen=True)
class PairedFolder:
    """Folder with one image file for each image file of another folder, in the order of the images.

    images: source of the images.  path: folder of the paired files.
    """

    images: ImageSource
    path: Path
    image_column: None = None
    label_column: None = None
    folder: None = None

    def __str__(self) -> str:
        return str(self.path)

    def locate(self) -> None:
        """Raise FileNotFoundError unless there is a folder."""
        if not self.path.is_dir():
            found = "is not a folder" if self.path.exists() else "does not exist"
            raise FileNotFoundError(f"data.condition_path must be a folder of images, got {self.path}, which {found}.")

    def splits(self) -> list[str]:
        return self.images.splits()

    def left_out(self, num_rows: int) -> Counter[str]:
        """Return an empty counter: files that belong to no image are ignored."""
        return Counter()

    def identity(self, split: str) -> str:
        """Return a string that changes with the names, sizes and modification times of the files."""
        digest = hashlib.sha256(os.fsencode(self.path.resolve()))
        for file in self.files(split):
            status = os.stat(file)
            digest.update(json.dumps([file, status.st_size, status.st_mtime_ns]).encode())
        return digest.hexdigest()

    def layout(self, split: str) -> list[Any]:
        return ["paired files"]

    def open(self, split: str, work_folder: Path) -> Rows:
        """Open the paired images of a split, all with label 0.  Raises ValueError if one is missing."""
        files = self.files(split)
        return Rows(ImageFiles(files), np.zeros(len(files), dtype=np.int64), ())

    def files(self, split: str) -> list[str]:
        """Return the path of the paired file of each image of a split.  Raises ValueError if one is missing."""
        content = self.images.folder
        if content is None:
            raise ValueError(
                f"data.condition_path must be null unless the images are a folder of image files, got {self.path} for "
                f"{self.images.setting}; data.condition_column=NAME names a second column of images in a table."
            )
        wanted = content.splits.get(split, [])
        found = dict(_matches(wanted, (file.path for file in image_folders.list_image_files(self.path)[0])))
        if missing := [path for path in wanted if path not in found]:
            names = ", ".join(terminal_text(path) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ValueError(
                f"data.condition_path must contain an image with the name of each image in {self.images}, got "
                f"{self.path}, which has none for {len(missing):,} of {counted(len(wanted), 'image')}: {names}."
            )
        root = self.path.absolute()
        return [str(root / found[path]) for path in wanted]


def _matches(wanted: Iterable[str], available: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each path in `wanted` with its path in `available`: the equal one, or one with another extension."""
    by_name: dict[PurePosixPath, list[str]] = {}
    for path in available:
        by_name.setdefault(PurePosixPath(path).with_suffix(""), []).append(path)
    for path in wanted:
        if candidates := by_name.get(PurePosixPath(path).with_suffix("")):
            yield path, path if path in candidates else min(candidates)

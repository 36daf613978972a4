"""Sources of image sets: a Hugging Face hub name or a local folder -> the undecoded images and labels of each split."""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_lab.data import hub, image_tables, local_tables
from diffusion_lab.data.earlier_layouts import is_read_differently
from diffusion_lab.data.image_files import ImageFiles, UndecodedImages
from diffusion_lab.files import image_folders
from diffusion_lab.files.image_folders import ImageFile, ImageFolder
from diffusion_lab.files.regular import Places, is_regular, visible_files

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = frozenset((".parquet", ".arrow", ".tar", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".zip", ".h5", ".hdf5"))
"""Extensions of files that the library `datasets` reads as tables."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables in which `datasets` looks up the labels of image files."""
COLUMNAR = (".parquet", ".arrow", ".tar")
"""Extensions of tables that usually contain images instead of their paths."""


@dataclass(frozen=True)
class Rows:
    """An opened split.

    images: undecoded images.  label: labels, int64 [N].  class_names: names of the classes; empty without names.
    """

    images: UndecodedImages
    label: np.ndarray
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ImageSource:
    """Location of an image set.

    hub_name: NAME or NAME:CONFIG on the Hugging Face hub, used if `path` is None.  path: local folder.
    image_column, label_column: names of the columns; if label_column is None, all images get label 0.
    image_root: folder below which image files may lie that a table names, in addition to the folder of the set.
    image_key: setting that names the image column, for error messages.
    """

    hub_name: str | None
    path: Path | None
    image_column: str
    label_column: str | None
    image_root: Path | None = None
    image_key: str = "data.image_column"

    def __str__(self) -> str:
        return str(self.hub_name if self.path is None else self.path)

    @property
    def setting(self) -> str:
        """Setting and value that select the set."""
        return f"data.hub_name={self.hub_name}" if self.path is None else f"data.path={self.path}"

    def locate(self) -> None:
        """Raise FileNotFoundError if the set can neither be found locally nor downloaded.

        Also raise ValueError if the set is a folder of image files that lacks the class folders. The error message
        contains the missing file or data set, and the remedy.
        """
        if self.image_root is not None and not self.image_root.is_dir():
            found = "is not a folder" if self.image_root.exists() else "does not exist"
            raise FileNotFoundError(f"data.image_root must be a folder, got {self.image_root}, which {found}.")
        if self.path is not None:
            if not self.path.is_dir():
                found = "is not a folder" if self.path.exists() else "does not exist"
                raise FileNotFoundError(
                    f"data.path must be a folder of images or parquet files, got {self.path}, which {found}."
                )
            if next(visible_files(self.path), None) is None:
                found = "contains only hidden files" if any(self.path.iterdir()) else "is empty"
                raise FileNotFoundError(
                    f"data.path must contain images or parquet files (train-*.parquet, test-*.parquet), "
                    f"but {self.path} {found}."
                )
            _ = self.folder
        elif self.hub_name is None:
            raise FileNotFoundError("data.path must name a folder of images or parquet files, got null.")
        elif not hub.is_reachable():
            hub.require_cached(self.hub_name)

    @cached_property
    def _table_files(self) -> list[Path]:
        """Files below the folder that are tables, sorted."""
        return [] if self.path is None else sorted(filter(is_regular, visible_files(self.path, TABLES)))

    @cached_property
    def _image_files(self) -> tuple[list[ImageFile], Counter[str]]:
        """Image files below the folder, and the number of left-out files by reason."""
        return ([], Counter()) if self.path is None else image_folders.list_image_files(self.path)

    @cached_property
    def folder(self) -> ImageFolder | None:
        """Content of a folder of image files; None for a set in tables.

        Raises ValueError if the folder has no images, or if labels are requested and there are no class folders.
        """
        if self.path is None or image_tables.is_saved(self.path):
            return None
        images, left_out = self._image_files
        tables = self._table_files
        if not images:
            if tables:
                return None
            found = ", ".join(f"{count:,} files ({reason})" for reason, count in left_out.items()) or "hidden files"
            raise ValueError(f"{self.setting} must contain images or parquet files, but it contains only {found}.")
        num_columnar = sum(file.suffix.lower() in COLUMNAR for file in tables)
        if num_columnar >= len(images) or self._has_listed_files():
            return None
        return image_folders.arrange(self.path, images, left_out, self.label_column is not None)

    def _tables(self) -> dict[str, list[Path]]:
        """Return the tables with paths of images and labels, by split; {} without labels or a local folder."""
        if self.path is None or self.label_column is None:
            return {}
        return image_tables.tables_with((self.image_column, self.label_column), self._table_files)

    def _has_listed_files(self) -> bool:
        """Return whether tables in the folder list the paths of image files."""
        return any(file.name in METADATA for file in self._table_files) or bool(self._tables())

    def left_out(self, num_rows: int) -> Counter[str]:
        """Return the number of files in a local folder that are left out before decoding, by reason.

        num_rows: number of images of the split, for a folder whose tables list the image files.
        """
        if self.folder is not None:
            return self.folder.left_out
        files = self._image_files[0]
        is_listed = bool(files) and self._has_listed_files()
        if is_listed and len(self.splits()) > 1:  # `num_rows` is the number of rows of only one of them
            return Counter()
        return +Counter({"image file that no table contains": len(files) - (num_rows if is_listed else 0)})

    def identity(self, split: str) -> str:
        """Return a string that changes with the names, sizes and modification times of the files of the set.

        For a set from the hub, the string is the fingerprint that the library `datasets` computes.
        """
        if self.path is None:
            return str(self._load(split, None)._fingerprint)
        digest = hashlib.sha256(os.fsencode(self.path.resolve()))
        if self.image_root is not None:  # its files are not listed: it may be the root of a disk
            digest.update(os.fsencode(self.image_root.resolve()))
        for file in sorted(visible_files(self.path)):
            with contextlib.suppress(OSError):  # a link to a missing file
                status = file.stat()
                digest.update(json.dumps([str(file), status.st_size, status.st_mtime_ns]).encode())
        return digest.hexdigest()

    def layout(self, split: str) -> list[Any]:
        """Return what the labels and the order of the images of a split depend on, apart from `identity`.

        The result is empty for a set that earlier versions read in the same way, so that its cache entries stay valid.
        """
        content = self.folder
        if content is None:
            is_renumbered = split != "train" and self.label_column is not None and self._has_text_labels(split)
            return ["one numbering of the classes for all splits"] if is_renumbered else []
        assert self.path is not None
        if not is_read_differently(self.path, content, self.label_column is not None):
            return []
        listed = json.dumps([content.splits.get(split), content.labels.get(split), content.class_names])
        return [hashlib.sha256(listed.encode()).hexdigest()]

    def _has_text_labels(self, split: str) -> bool:
        """Return whether the labels may be names without a numbering."""
        if self.path is not None:
            return any(image_tables.may_have_text(file, self.label_column or "") for file in self._table_files)
        feature = self._load(split, None).features.get(self.label_column)
        return feature is not None and image_tables.is_text(feature)

    def splits(self) -> list[str]:
        """Return the names of the splits without reading images.

        Raises FileNotFoundError if the set is missing, and ValueError if it is not an image set.
        """
        self.locate()
        if self.folder is not None:
            return list(self.folder.splits)
        if self.path is not None and image_tables.is_saved(self.path):
            return list(image_tables.saved_splits(self.path))
        if tables := self._path_tables():
            return list(tables)
        builder, failure = image_tables.load(self._builder)
        if failure is not None:
            raise image_tables.load_error(failure, self.setting, "train")
        return [str(split) for split in builder.info.splits or builder.config.data_files]

    def open(self, split: str, work_folder: Path) -> Rows:
        """Open the images and labels of a split.

        work_folder: folder into which `datasets` unpacks local files.
        Raises FileNotFoundError if the set is missing, and ValueError if it does not have the split or the columns.
        """
        if (content := self.folder) is not None:
            assert self.path is not None
            if split not in content.splits:
                raise self._no_split(split, content.splits)
            paths = content.splits[split]
            label = np.array(content.labels.get(split) or np.zeros(len(paths)), dtype=np.int64)
            root = self.path.absolute()
            return Rows(ImageFiles([str(root / path) for path in paths]), label, content.class_names)
        dataset = self._load(split, None if self.path is None else work_folder)
        return image_tables.result_of(lambda: self._rows(dataset, split, work_folder), self.setting, split)

    def _rows(self, dataset: "Dataset", split: str, work_folder: Path) -> Rows:
        image_tables.require_columns(dataset, str(self), self.image_column, self.label_column, split, self.image_key)
        images = image_tables.undecoded(dataset, self.image_column, self._folders_of_paths(), self._places(work_folder))
        image_tables.require_files(images, str(self), self.image_column)
        if self.label_column is None:
            return Rows(images, np.zeros(len(dataset), dtype=np.int64), ())
        label, names = image_tables.labels_of(dataset, self.label_column, lambda: self._load_train(split, work_folder))
        return Rows(images, label, tuple(names))

    def _load_train(self, split: str, work_folder: Path) -> "Dataset | None":
        """Load the train split, which numbers the names of classes; None if it is `split` or missing."""
        if split == "train" or "train" not in self.splits():
            return None
        dataset = self._load("train", None if self.path is None else work_folder)
        return dataset if self.label_column in dataset.column_names else None

    def _folders_of_paths(self) -> list[Path]:
        """Return the folders to which the paths of image files in a table may be relative."""
        roots = [] if self.image_root is None else [self.image_root]
        if self.path is None:
            return roots or [Path()]
        folders = {file.parent for file in self._table_files if file.suffix.lower() in image_tables.READERS}
        return [self.path, *roots, *sorted(folders - {self.path})]

    def _places(self, work_folder: Path) -> Places:
        """Return the folders below which image files must lie that a table names."""
        import datasets
        import huggingface_hub.constants

        caches = (huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE)
        folders = caches if self.path is None else (self.path.absolute(), work_folder.absolute())
        return Places([str(folder) for folder in (*folders, self.image_root) if folder is not None])

    def _path_tables(self) -> dict[str, list[Path]]:
        """Return the tables of a folder that also contains image files, which `datasets` would read instead."""
        return self._tables() if self._image_files[0] else {}

    def _load(self, split: str, work_folder: Path | None) -> "Dataset":
        self.locate()
        if self.path is not None:
            accepted = image_tables.saved_splits(self.path) if image_tables.is_saved(self.path) else self._path_tables()
            if accepted and split not in accepted:
                raise self._no_split(split, accepted)
        dataset, failure = image_tables.load(lambda: self._read(split, work_folder))
        if failure is not None:
            raise image_tables.load_error(failure, self.setting, split)
        return dataset

    def _read(self, split: str, work_folder: Path | None) -> "Dataset":
        """Read a split with the library `datasets`, which raises errors of any type."""
        columns = (self.image_column, self.label_column)
        if self.path is None:
            import datasets

            return datasets.load_dataset(*self._name_and_config(), split=split)
        if image_tables.is_saved(self.path):
            return local_tables.read_saved(image_tables.saved_splits(self.path)[split])
        if tables := self._path_tables():
            reader = image_tables.READERS[tables[split][0].suffix.lower()]
            return local_tables.read_files(reader, split, tables[split], columns, work_folder)
        return local_tables.read_folder(self.path, split, columns, work_folder)

    def _builder(self) -> Any:
        """Return the object of the library `datasets` that lists the files of a set."""
        if self.path is not None:
            return local_tables.builder_of(self.path)
        import datasets

        return datasets.load_dataset_builder(*self._name_and_config())

    def _name_and_config(self) -> tuple[str, str | None]:
        name, _, config = str(self.hub_name).partition(":")
        return name, config or None

    def _no_split(self, split: str, accepted: Iterable[str]) -> ValueError:
        return ValueError(
            f"{self.setting} cannot be read as images with a split {split!r}: its splits are {', '.join(accepted)}."
        )

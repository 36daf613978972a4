"""Image sets in tables: parquet, Arrow and CSV files, and sets that the library `datasets` downloads or has saved.

The library `datasets` takes more than a second to import, so it is only imported when a set is opened.
"""

import csv
import errno
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from diffusion_lab.data.image_files import ImageColumn, ImageFiles, UndecodedImages
from diffusion_lab.files.image_folders import EXTENSIONS, split_named
from diffusion_lab.files.regular import Places, is_regular, open_regular
from diffusion_lab.reporting.text import terminal_text

if TYPE_CHECKING:
    from datasets import Dataset

Result = TypeVar("Result")

SAVED_SET, SAVED_SPLIT = "dataset_dict.json", "state.json"
"""Files that `save_to_disk` writes for a set with several splits, and for each split."""
NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0", "list index out of range")
"""Error messages of `datasets` for a split without rows: of several tables, a parquet file and a saved set."""
MAX_HEADER, MAX_REASON = 2**20, 500
"""Largest size of the first line of a CSV file, and of the text of an error of another library."""
READERS = {".parquet": "parquet", ".csv": "csv"}
"""Extensions of tables whose column of images may contain paths of files, and the modules that read them."""


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of the library `datasets`."""
    return (folder / SAVED_SET).is_file() or (folder / SAVED_SPLIT).is_file()


def saved_splits(folder: Path) -> dict[str, Path]:
    """Return the folder of each split of a set that was written by `save_to_disk`; a single split is named train."""
    if not (folder / SAVED_SET).is_file():
        return {"train": folder}
    states = filter(is_regular, sorted(folder.glob(f"*/{SAVED_SPLIT}")))
    found = {path.parent.name: path.parent for path in states}
    return dict(sorted(found.items(), key=lambda item: item[0] != "train"))


def tables_with(columns: Sequence[str], files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the tables among the files that have all columns, by the split in their name: train unless they name one.

    files: files of any kind.  Unreadable tables are left out.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in READERS and set(columns) <= set(_column_names(file)):
            split = (split_named(file.stem) or split_named(file.parent.name) or ("train", 0))[0]
            splits.setdefault(split, []).append(file)
    return splits


def _column_names(file: Path) -> list[str]:
    import pyarrow.parquet

    try:
        with open_regular(file) as stream:
            if file.suffix.lower() == ".csv":
                return next(csv.reader([stream.readline(MAX_HEADER).decode("utf-8-sig")]), [])
            return list(pyarrow.parquet.read_schema(stream).names)
    except (OSError, ValueError, csv.Error, pyarrow.ArrowException):
        return []


def may_have_text(file: Path, column: str) -> bool:
    """Return whether a column of a table may contain text.  Only parquet files are inspected."""
    import pyarrow.parquet

    if file.suffix.lower() != ".parquet":
        return True
    try:
        with open_regular(file) as stream:
            schema = pyarrow.parquet.read_schema(stream)
    except (OSError, ValueError, pyarrow.ArrowException):
        return True
    return column in schema.names and not pyarrow.types.is_integer(schema.field(column).type)


def result_of(read: Callable[[], Result], source: str, split: str) -> Result:
    """Return the result of a function that uses an opened data set.

    source: SETTING=VALUE of the set.  Its own ValueErrors are raised, and any other error as `load_error`.
    """
    result, failure = load(read)
    if failure is not None:
        raise failure if type(failure) is ValueError else load_error(failure, source, split)
    return result  # type: ignore[no-any-return]


def load(read: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return the result of a reading function of `datasets`, or None and the first cause of its error."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # errors contain the log messages
    try:
        return read(), None
    except Exception as error:  # damaged files raise errors of any type, from pyarrow errors to KeyError
        failure: BaseException = error
    # Outside of the except block, where the error would keep a pyarrow reader alive. The reader's threads would then
    # not end at exit.
    while (cause := failure.__cause__) is not None:
        failure = cause
    failure.__traceback__ = failure.__context__ = None
    gc.collect()
    return None, failure


def load_error(cause: BaseException, source: str, split: str) -> Exception:
    """Return the error to raise for the cause of an error of `datasets`.  source: SETTING=VALUE of the set."""
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return OSError(cause.errno, cause.strerror)  # an error of the cache, not of the image set
    reason = terminal_text(" ".join(str(cause).split())[:MAX_REASON]) or type(cause).__name__
    if any(phrase in reason for phrase in NO_ROWS):
        reason = "the split has 0 rows, but it must have at least 1."
    return ValueError(f"{source} cannot be read as images with a split {split!r}: {reason}")


def undecoded(dataset: "Dataset", column: str, folders: Sequence[Path], places: Places) -> UndecodedImages:
    """Return the images of a column that `require_columns` accepts.

    folders: folders to which paths of files may be relative.  places: folders below which all files must lie.
    """
    if not is_text(dataset.features[column]):
        from datasets import Image

        return ImageColumn(dataset.select_columns([column]).cast_column(column, Image(decode=False)), places)
    paths = ["" if path is None else str(path) for path in dataset.data.column(column).to_pylist()]
    folder = _folder_of(paths, folders, places)
    return ImageFiles([os.path.join(folder, path) if path else "" for path in paths], places)


def _folder_of(paths: Sequence[str], folders: Sequence[Path], places: Places) -> Path:
    """Return the folder in which the first of the paths that exists in any of the folders exists."""
    for path in islice(filter(None, paths), 100):
        for folder in folders:
            if (place := places.find(os.path.join(folder, path))) is not None and is_regular(place):
                return folder
    return folders[0]


def require_columns(
    dataset: "Dataset", source: str, image_column: str, label_column: str | None, split: str, image_key: str
) -> None:
    """Raise ValueError unless a data set has rows and the columns of images and labels.

    image_key: setting that names the image column.
    """
    columns = dataset.column_names
    candidates = [name for name in columns if _may_contain_images(dataset, name)]
    found = ", ".join(f"{name} ({_kind(dataset.features[name])})" for name in columns)
    if not candidates and not (image_column in columns and is_text(dataset.features[image_column])):
        raise ValueError(
            f"{source} contains no images: its columns are {found}; a column of images contains the bytes of image "
            "files (such as PNG or JPEG) or paths of image files."
        )
    if image_column not in columns or (image_column not in candidates and candidates):
        raise ValueError(f"{image_key} must be one of {', '.join(candidates)} for {source}, got {image_column}.")
    if label_column is not None and label_column not in columns:
        accepted = [name for name in columns if name not in candidates or is_text(dataset.features[name])]
        accepted = [name for name in accepted if name != image_column]
        possible = f"one of {', '.join(accepted)} or null" if accepted else "null (there is no column of labels)"
        raise ValueError(
            f"data.label_column must be {possible} for {source}, got {label_column}; set data.label_column=null to "
            "train without classes."
        )
    if not len(dataset):
        raise ValueError(f"{source} contains no images: the split {split} has 0 rows.")


def require_files(images: UndecodedImages, source: str, column: str) -> None:
    """Raise ValueError if none of the first image files exists, or if all of them are in other places."""
    if not isinstance(images, ImageFiles) or images.places is None:
        return
    paths = [path for path in images.paths[:100] if path]
    places = [images.places.find(path) for path in paths]
    if paths and all(place is None for place in places):
        raise ValueError(
            f"{source} must name images in its folder, but its column {column} names other places, such as "
            f"{terminal_text(paths[0][:200])}; data.image_root=FOLDER allows paths below FOLDER."
        )
    if not any(place is not None and is_regular(place) for place in places):
        first = next(iter(paths), "")
        raise ValueError(
            f"{source} contains no images: its column {column} contains text such as {Path(first).name[:200]!r}, which "
            "is not the path of a file relative to the table; a column of images contains the bytes of image files or "
            "paths of image files."
        )


def _may_contain_images(dataset: "Dataset", column: str) -> bool:
    """Return whether a column has a type of images, or text that ends with the extension of an image file."""
    feature = dataset.features[column]
    if is_text(feature):
        first = next((text for text in dataset.data.column(column)[:1].to_pylist() if text), "")
        return Path(first).suffix.lower() in EXTENSIONS
    keys = set(feature) if isinstance(feature, dict) else set()
    is_image = type(feature).__name__ == "Image" or keys == {"bytes", "path"}
    return is_image or getattr(feature, "dtype", None) in ("binary", "large_binary")


def is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def labels_of(dataset: "Dataset", column: str, train: Callable[[], "Dataset | None"]) -> tuple[np.ndarray, list[str]]:
    """Return the labels of a split, int64 [N], and the names of the classes of the set, [] if they have no names.

    train: function that returns the train split, whose names are numbered first; None if it is this split or missing.
    Raises ValueError for labels that are neither names nor whole numbers of at least 0.
    """
    import pyarrow as pa

    values = dataset.data.column(column)
    names = list(getattr(dataset.features[column], "names", None) or [])
    if any(not isinstance(name, str) for name in names):
        raise ValueError(f"data.label_column={column} must have texts as names of its classes, got {str(names)[:100]}.")
    if values.null_count:
        raise ValueError(f"data.label_column={column} has no value for {values.null_count} images.")
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        known = train()
        names = _names(known, column) if known is not None else []
        names += sorted(set(_names(dataset, column)) - set(names))
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[str(name)] for name in values.to_pylist()], dtype=np.int64), names
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"data.label_column must contain whole numbers or names, got {values.type} in {column}.")
    label = np.asarray(values.to_numpy(), dtype=np.int64)
    if label.min() < 0 or (names and label.max() >= len(names)):
        accepted = f"in 0..{len(names) - 1}" if names else "at least 0"
        value = label.min() if label.min() < 0 else label.max()
        raise ValueError(f"data.label_column={column} must contain labels that are {accepted}, got {value}.")
    return label, names


def _names(dataset: "Dataset", column: str) -> list[str]:
    return sorted(str(name) for name in dataset.data.column(column).unique().to_pylist() if name is not None)

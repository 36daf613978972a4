"""Reading of local tables with the library `datasets`, after the checks of `table_checks`.

The functions raise errors of any type for damaged files; `image_tables.load` returns their causes.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from diffusion_lab.data import table_checks
from diffusion_lab.data.parquet_checks import columns_to_read
from diffusion_lab.files.image_folders import EXTENSIONS

if TYPE_CHECKING:
    from datasets import Dataset


def builder_of(folder: Path) -> Any:
    """Return the object of the library `datasets` that lists the files of a folder."""
    import datasets

    table_checks.require_local_description(folder)
    with TemporaryDirectory() as cache:  # otherwise, a lock file for each set stays in the cache of the library
        builder = datasets.load_dataset_builder(str(folder), cache_dir=cache)
    table_checks.require_reader(type(builder).__module__.split(".")[2])
    return builder


def read_saved(folder: Path) -> "Dataset":
    """Read a split that `save_to_disk` wrote."""
    import datasets

    table_checks.require_small(table_checks.require_saved_files(folder), ())
    return datasets.load_from_disk(str(folder))


def read_folder(folder: Path, split: str, columns: tuple[str, str | None], work_folder: Path | None) -> "Dataset":
    """Read a split of a folder, of which `datasets` chooses the files.

    columns: names of the columns of images and labels.  work_folder: folder into which `datasets` unpacks files.
    """
    listed = [Path(file) for file in builder_of(folder).config.data_files.get(split, ())]
    files = [file for file in listed if file.suffix.lower() not in EXTENSIONS]
    return _read(str(folder), split, files, columns, work_folder)


def read_files(
    reader: str, split: str, files: Sequence[Path], columns: tuple[str, str | None], work_folder: Path | None
) -> "Dataset":
    """Read the tables of a split.  reader: module of `datasets` that reads them.  columns: see `read_folder`."""
    data_files = {split: [str(file) for file in files]}
    return _read(reader, split, files, columns, work_folder, data_files=data_files)


def _read(
    name: str,
    split: str,
    files: Sequence[Path],
    columns: tuple[str, str | None],
    work_folder: Path | None,
    **options: Any,
) -> "Dataset":
    import datasets

    if files and all(file.suffix.lower() == ".parquet" for file in files):
        options["columns"] = columns_to_read(files[0], *columns)
    num_bytes = table_checks.require_small(files, options.get("columns", ()))
    table_checks.require_disk(num_bytes, work_folder)
    cache = None if work_folder is None else str(work_folder)
    return datasets.load_dataset(name, split=split, cache_dir=cache, **options)

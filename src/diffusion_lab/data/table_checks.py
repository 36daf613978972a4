"""Checks of local tables and archives before the library `datasets` reads them, which reads whatever a file asks for.

A table of a few kilobytes can expand to more than the memory, and README.md can name files in any place or on the
internet. Each function raises ValueError with one sentence that starts with the path of the file.
"""

import errno
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.config.plain_yaml import NotPlainError, load_yaml
from diffusion_lab.data import arrow_checks
from diffusion_lab.data.parquet_checks import require_small_parquet
from diffusion_lab.files.image_folders import EXTENSIONS
from diffusion_lab.files.regular import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    gigabytes,
    is_regular,
    memory_budget,
    open_regular,
    read_regular,
)

READERS = ("parquet", "arrow", "csv", "json", "text", "imagefolder", "webdataset")
"""Modules of `datasets` that read local files. Others follow links in files, or run optional libraries."""
DESCRIPTIONS = ("README.md", ".huggingface.yaml")
"""Files in which `datasets` looks up which files belong to a set."""
COMPRESSED = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"\x04\x22\x4d\x18",
    b"PK\x03\x04",
    b"Rar!",
    b"7z\xbc",
)
"""First bytes of compressed files, which `datasets` decompresses whatever their extension is."""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".lzma", ".zip", ".rar", ".7z", ".tar", ".tgz")
"""Extensions of compressed files in an archive, which `datasets` decompresses when it reads them."""
TAR_TEXTS = (".txt", ".text", ".transcript", ".cls", ".cls2", ".index", ".inx", ".id", ".json", ".jsn")
"""Extensions of the texts and labels in a TAR archive. `datasets` also unpacks arrays and tensors, of any size."""
EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
"""Types of headers in a TAR archive that are followed by a text, such as a long name."""
MAX_HEADER = 2**20
"""Largest size of the YAML header of README.md, and of the long name of a file in a TAR archive."""


def require_reader(name: str) -> None:
    """Raise ValueError unless a module of `datasets` may read local files."""
    if name not in READERS:
        raise ValueError(
            f"its files would be read with the module {name} of the library datasets, which must be one of "
            f"{', '.join(READERS)}."
        )


def require_local_description(folder: Path) -> None:
    """Raise ValueError if README.md in the folder of a set names files outside of the folder."""
    for file in (folder / name for name in DESCRIPTIONS):
        if os.path.lexists(file):
            for text in _strings(_configs(file)):
                if "://" in text or "::" in text or text.startswith(("/", "~", "\\")) or ".." in text.split("/"):
                    raise ValueError(f"{file} must only name files in its folder, got {text[:200]!r}.")


def require_small(files: Iterable[Path], columns: Sequence[str]) -> int:
    """Raise ValueError if a table or an archive takes more memory than is acceptable when it is read.

    columns: names of the columns that are read from parquet files.
    Returns the number of bytes that the unpacked parquet files and archives take on the disk.
    """
    num_bytes = 0
    for file in files:
        try:
            with open_regular(file) as stream:
                start = stream.read(16)
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}.") from None
        suffix = file.suffix.lower()
        if suffix == ".zip":
            num_bytes += _require_small_zip(file, start)
        elif start.startswith(COMPRESSED):
            raise ValueError(f"{file} must not be compressed: it starts with the bytes of a compressed file.")
        elif suffix == ".parquet":
            num_bytes += require_small_parquet(file, columns)
        elif suffix == ".arrow":
            arrow_checks.require_intact(file)
        elif suffix == ".tar":
            _require_small_tar(file)
        elif file.stat().st_size > memory_budget() // 4:
            size, limit = gigabytes(file.stat().st_size), gigabytes(memory_budget() // 4)
            raise ValueError(f"{file} must have at most {limit} (1/16 of the memory), got {size}.")
    return num_bytes


def require_disk(num_bytes: int, folder: Path | None) -> None:
    """Raise OSError unless the disk of a folder has as much free space.  None accepts any number of bytes."""
    place = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), None) if folder else None
    free = num_bytes if place is None else shutil.disk_usage(place).free
    if num_bytes > free:
        raise OSError(errno.ENOSPC, f"the images take {gigabytes(num_bytes)}, and {gigabytes(free)} are free")


def require_saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a split that `save_to_disk` wrote.  Raises ValueError for files in other places."""
    state = read_json(folder / "state.json")
    read_json(folder / "dataset_info.json")
    listed = state.get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in listed or []]
    if not isinstance(listed, list):
        raise ValueError(f"{folder / 'state.json'} must list its data files.")
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or not is_regular(folder / name):
            raise ValueError(f"{folder / 'state.json'} must list files in its folder, got {str(name)[:200]!r}.")
    return [folder / str(name) for name in names]


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file.  Raises ValueError unless it is an object in a regular file."""
    try:
        content = json.loads(read_regular(file, MAX_TEXT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise ValueError(f"{file} cannot be read: {reason}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must contain a JSON object, got {type(content).__name__}.")
    return content


def _configs(file: Path) -> Any:
    """Return the entry `configs` of the YAML header of README.md, or the content of another YAML file."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        text = read_regular(file, MAX_TEXT_BYTES).decode("utf-8", errors="replace")
        if file.suffix == ".md":
            found = REGEX_YAML_BLOCK.search(text)
            text = found[2] if found else ""
        if len(text) > MAX_HEADER:
            raise ValueError(f"{file} must have a YAML header of at most 1 MB, got {len(text):,} characters.")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from None
    try:
        content = load_yaml(text)
    except NotPlainError as error:
        raise ValueError(f"{file} must have plain values in its YAML header, but it {error}.") from None
    except ValueError:
        raise ValueError(f"{file} cannot be read: its YAML header is damaged.") from None
    return content.get("configs") if isinstance(content, dict) else None


def _strings(content: Any) -> Iterable[str]:
    """Yield all texts in nested lists and dicts."""
    parts = [content]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            parts += [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple, set)):
            parts += part


def _require_small_zip(file: Path, start: bytes) -> int:
    try:
        if not start.startswith(b"PK\x03\x04"):
            raise ValueError(f"{file} must be a ZIP archive with files.")
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        raise ValueError(f"{file} cannot be read as a ZIP archive.") from None
    for member in members:
        if member.file_size > MAX_IMAGE_BYTES:
            raise _too_large(file, member.filename, member.file_size)
        if member.flag_bits & 1:
            raise ValueError(f"{file} must not be encrypted.")
        if any(suffix in PACKED for suffix in _suffixes(member.filename)):  # pandas decompresses a.csv.gz
            raise _packed(file, member.filename)
    return sum(member.file_size for member in members)


def _require_small_tar(file: Path) -> None:
    try:
        # Not "r:*", which decompresses. The size of a sparse member is not limited by the size of the archive.
        with tarfile.open(file, "r:", tarinfo=_SmallHeader) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them in memory
                if member.isfile() and member.size > MAX_IMAGE_BYTES:
                    raise _too_large(file, member.name, member.size)
                if member.isfile() and not _is_accepted_in_tar(member.name):
                    raise _packed(file, member.name)
    except (tarfile.TarError, _LargeHeaderError, OSError, EOFError, RecursionError):
        raise ValueError(f"{file} cannot be read as an uncompressed TAR archive.") from None


class _LargeHeaderError(Exception):
    """The name of a file in a TAR archive is too long.  No TarError, after which `tarfile` may end without an error."""


class _SmallHeader(tarfile.TarInfo):
    """Header of a file in a TAR archive, whose long name or extended header `tarfile` reads into the memory."""

    @classmethod
    def frombuf(cls, *arguments: Any) -> "_SmallHeader":
        header = super().frombuf(*arguments)
        if header.type in EXTENDED and header.size > MAX_HEADER:
            raise _LargeHeaderError
        return header


def _is_accepted_in_tar(name: str) -> bool:
    suffixes = _suffixes(name)
    return not suffixes or suffixes[-1] in EXTENSIONS or suffixes[-1] in TAR_TEXTS


def _suffixes(name: str) -> list[str]:
    return [f".{part}" for part in os.path.basename(name).lower().split(".")[1:]]


def _packed(file: Path, name: str) -> ValueError:
    return ValueError(
        f"{file} must contain images, labels and texts, no compressed files and no arrays, got {name[:200]!r}."
    )


def _too_large(file: Path, name: str, size: int) -> ValueError:
    return ValueError(
        f"{file} must contain files of at most {gigabytes(MAX_IMAGE_BYTES)}, got {gigabytes(size)} in {name[:200]!r}."
    )

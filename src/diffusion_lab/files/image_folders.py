"""Layout of a folder of image files: its splits and classes, which its subfolders define, and the left-out files.

A folder of images has one of these forms, in which SPLIT is a name of train, validation or test:

    IMAGE    CLASS/IMAGE    SPLIT/IMAGE    SPLIT/CLASS/IMAGE    CLASS/SPLIT/IMAGE

and any of them may be below further folders. A class folder may contain further folders.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from diffusion_lab.files.regular import is_regular, open_regular, walk

_EXTENSIONS = (
    *("apng", "avif", "avifs", "blp", "bmp", "bufr", "bw", "cur", "dcx", "dds", "dib", "emf", "eps", "fit", "fits"),
    *("flc", "fli", "ftc", "ftu", "gbr", "gif", "grib", "heic", "heif", "hif", "icb", "icns", "ico", "iim", "im"),
    *("j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx", "mpeg", "mpg", "msp", "pbm", "pcd"),
    *("pcx", "pgm", "png", "pnm", "ppm", "ps", "psd", "pxr", "ras", "rgb", "rgba", "sgi", "tga", "tif", "tiff"),
    *("vda", "vst", "webp", "wmf", "xbm", "xpm"),
)
EXTENSIONS = frozenset(f".{name}" for name in _EXTENSIONS)
"""Extensions of image files. Files of a format that is not decoded are listed as damaged."""
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP  ")
"""First bytes of the image formats by which files without an extension are recognized."""
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
SYSTEM_FOLDERS = frozenset(("@eadir", "$recycle.bin", "lost+found", "system volume information"))
"""Folders that an operating system or a disk station creates, in lower case."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> names of its folders and files. Other words may precede or follow, separated by one of "-._ " or a digit."""

_ANY_SPLIT = re.compile("|".join(name for names in SPLITS.values() for name in names))

OUTSIDE_CLASSES = "outside of the class folders"
EMPTY_FOLDER = "empty folder"


class NoClassFoldersError(ValueError):
    """A folder of images has no class folders."""


@dataclass(frozen=True)
class ImageFile:
    """An image file.  path: relative path.  folders: names of its folders, from the outermost to the innermost."""

    path: str
    folders: tuple[str, ...]

    @property
    def split_position(self) -> int | None:
        """Position in `folders` of the first folder that is named after a split, or None."""
        return next((k for k, name in enumerate(self.folders) if split_named(name)), None)


@dataclass
class ImageFolder:
    """Content of a folder of images.

    splits: paths relative to the folder, by split and in a fixed order.  labels: class of each path, by split.
    class_names: sorted names of the classes of all splits; empty if classes are not requested.
    left_out: number of files that are left out, by reason.
    class_level: name of the level of nested folders that defines the classes, or "" if folders are not nested.
    """

    splits: dict[str, list[str]]
    labels: dict[str, list[int]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    class_level: str = ""


@lru_cache(maxsize=100_000)
def split_named(text: str) -> tuple[str, int] | None:
    """Return the split that a name of a folder or file stem names, and the rank of its name; None if it names no split.

    Names of a lower rank come first in a split: train before train_2 before my_train before training.
    """
    if not _ANY_SPLIT.search(text):  # most file names, of which a set may have millions
        return None
    for split, names in SPLITS.items():
        for number, name in enumerate(names):
            for form, pattern in enumerate(("{}", "{}[-._ 0-9].*", ".*[-._ 0-9]{}", ".*[-._ 0-9]{}[-._ 0-9].*")):
                if re.fullmatch(pattern.format(name), text, re.DOTALL):
                    return split, 4 * number + form
    return None


def arrange(root: Path, files: list[ImageFile], left_out: Counter[str], with_classes: bool) -> ImageFolder:
    """Return the splits and classes of the files of a folder.

    files, left_out: result of `list_image_files`.  with_classes: whether to derive classes from the names of folders.
    Raises NoClassFoldersError if classes are requested and there are no class folders.
    """
    if not with_classes:
        splits, outside = _splits(files)
        content = ImageFolder({name: [file.path for file in part] for name, part in splits.items()})
        left_out = +Counter({reason: count for reason, count in left_out.items() if reason != EMPTY_FOLDER})
    else:
        layout = _splits_with_classes(root, files)
        content, outside = _with_labels(layout.splits), layout.left_out
    content.left_out = left_out + outside
    return content


def list_image_files(root: Path) -> tuple[list[ImageFile], Counter[str]]:
    """Return the image files below a folder, sorted by path, and the number of left-out files by reason."""
    files, left_out, unreadable, empty, refused = [], Counter[str](), list[OSError](), list[str](), Counter[str]()
    for path in sorted(_walk(root, unreadable, empty, refused)):
        *folders, name = path.split("/")
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith("._") or name.lower() in SYSTEM_FILES or (name.startswith(".") and suffix not in EXTENSIONS):
            continue
        if name.startswith(".") or any(is_system_folder(folder) for folder in folders):
            left_out["hidden or in a system folder"] += suffix in EXTENSIONS
        elif not is_regular(f"{root}/{path}"):
            left_out["not a regular file" if os.path.exists(f"{root}/{path}") else "link to a missing file"] += 1
        elif suffix in EXTENSIONS or (not suffix and _has_signature(root / path)):
            files.append(ImageFile(path, tuple(folders)))
        else:
            left_out[f"extension {suffix}" if suffix else "unknown type of file"] += 1
    left_out["folder that cannot be read"] = len(unreadable)
    left_out.update(refused)
    left_out[EMPTY_FOLDER] = sum(not any(map(is_system_folder, path.split("/"))) for path in empty)
    return files, +left_out


def is_system_folder(name: str) -> bool:
    """Return whether a folder is hidden, or was written by an operating system or a program, such as __MACOSX."""
    return name.startswith((".", "__")) or name.lower() in SYSTEM_FOLDERS


def counted(number: int, noun: str) -> str:
    """Return a number and a noun, in the plural unless the number is 1."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def num_class_folders(path: str | None) -> int:
    """Return the number of classes of a folder of images; 0 if it is missing or has no class folders."""
    if path is None:  # loading the data set raises the error
        return 0
    folder = Path(os.path.expanduser(path))
    try:
        return len(arrange(folder, *list_image_files(folder), with_classes=True).class_names) if folder.is_dir() else 0
    except NoClassFoldersError:  # loading the data set raises this error
        return 0


def _walk(root: Path, unreadable: list[OSError], empty: list[str], refused: Counter[str]) -> Iterator[str]:
    """Yield the relative paths of all files below a folder.  Links are followed, but each folder is visited once.

    unreadable: list to which the error of each folder that cannot be read is appended.
    empty: list to which the relative path of each folder without files and folders is appended.
    refused: counter of the folders that are not followed, by reason.
    """
    for parent, folders, names in walk(root, unreadable.append, refused):
        relative = Path(parent).relative_to(root).as_posix()
        if not folders and not names:
            empty.append(relative)
        yield from (name if relative == "." else f"{relative}/{name}" for name in names)


def _has_signature(file: Path) -> bool:
    try:
        with open_regular(file) as stream:
            start = stream.read(12)
    except OSError:
        return False
    return start.startswith(SIGNATURES) and (start[:4] != b"RIFF" or start[8:] == b"WEBP")


@dataclass
class _Layout:
    """splits: (path, names of the class folder and the folders in it) of each image, by split."""

    splits: dict[str, list[tuple[str, tuple[str, ...]]]]
    left_out: Counter[str]


def _splits(files: list[ImageFile]) -> tuple[dict[str, list[ImageFile]], Counter[str]]:
    """Return the files of each split of a set without classes, and the number of files outside of the split folders."""
    inside = [file for file in files if file.split_position is not None]
    splits = _group((_folder_split(file), file) for file in inside)
    if inside and ("train" in splits or len(inside) == len(files)):
        return splits, +Counter({_outside_splits(inside): len(files) - len(inside)})
    return _splits_by_file_name(files), Counter()


def _folder_split(file: ImageFile) -> tuple[str, int]:
    assert file.split_position is not None
    named = split_named(file.folders[file.split_position])
    assert named is not None
    return named


def _outside_splits(inside: list[ImageFile]) -> str:
    """Return the reason for which files are left out that are not in the folders that are read as splits."""
    names = sorted({file.folders[file.split_position or 0] for file in inside})
    return f"not in {', '.join(names)}, which {'are read as splits' if len(names) > 1 else 'is read as a split'}"


def _splits_by_file_name(files: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Return the files of each split if all file names contain a split, such as train_1.png; else the split train."""
    named = [(split, file) for file in files if (split := split_named(Path(file.path).name)) is not None]
    splits = _group(named)
    return splits if len(named) == len(files) and "train" in splits else {"train": files}


def _group(named: Iterable[tuple[tuple[str, int], ImageFile]]) -> dict[str, list[ImageFile]]:
    """Group files by split, in the order of SPLITS; the files of a split are sorted by rank and path."""
    ordered = sorted(named, key=lambda item: (item[0][1], item[1].path))
    groups = {split: [file for (name, _), file in ordered if name == split] for split in SPLITS}
    return {split: group for split, group in groups.items() if group}


def _splits_with_classes(root: Path, files: list[ImageFile]) -> _Layout:
    """Return the layout of a set with classes.  Raises NoClassFoldersError if there are no class folders."""
    in_folders = [file for file in files if file.folders]
    inside = [file for file in in_folders if file.split_position is not None]
    below = [file for file in inside if len(file.folders) > (file.split_position or 0) + 1]
    splits = _group((_folder_split(file), file) for file in below)
    outside, all_inside = len(in_folders) - len(inside), len(inside) == len(in_folders)
    if 2 * len(below) > len(inside) and ("train" in splits or all_inside):
        classes = {name: [(f.path, f.folders[(f.split_position or 0) + 1 :]) for f in g] for name, g in splits.items()}
        strays = len(files) - len(below) - outside
        return _Layout(classes, +Counter({OUTSIDE_CLASSES: strays, _outside_splits(below): outside}))
    strays = len(files) - len(in_folders)
    if 2 * strays > len(files) or not in_folders:
        raise NoClassFoldersError(
            _no_class_folders(
                root,
                f"{counted(strays, 'image')} directly inside",
                "; if it is a class folder itself, data.path must be the folder that contains it",
            )
        )
    if inside and all_inside:
        return _classes_above_splits(root, inside, strays)
    groups = _splits_by_file_name(in_folders)
    classes = {name: [(file.path, file.folders) for file in group] for name, group in groups.items()}
    return _Layout(classes, +Counter({OUTSIDE_CLASSES: strays}))


def _classes_above_splits(root: Path, files: list[ImageFile], strays: int) -> _Layout:
    """Return the layout CLASS/SPLIT/IMAGE.  Raises NoClassFoldersError for SPLIT/IMAGE."""
    if len({file.folders[: file.split_position] for file in files}) < 2:
        names = sorted({"/".join(file.folders) for file in files})
        found = f"images directly in the folders {', '.join(names)}, which are read as splits"
        remedy = f"; to read these folders as classes, move them to a folder train in {root.name}"
        raise NoClassFoldersError(_no_class_folders(root, found, remedy))
    groups = _group((_folder_split(file), file) for file in files)
    classes = {name: [(file.path, file.folders[: file.split_position]) for file in g] for name, g in groups.items()}
    return _Layout(classes, +Counter({OUTSIDE_CLASSES: strays}))


def _no_class_folders(root: Path, found: str, remedy: str = "") -> str:
    return (
        f"data.path={root} must contain class folders (CLASS/IMAGE or train/CLASS/IMAGE), but it contains {found}; "
        f"data=folder, or data.label_column=null, trains without classes{remedy}."
    )


def _with_labels(splits: dict[str, list[tuple[str, tuple[str, ...]]]]) -> ImageFolder:
    """Return the content of a folder with one numbering of the classes for all splits."""
    folders = {path: parts for group in splits.values() for path, parts in group}
    depths = {len(parts) for parts in folders.values()}
    innermost = set(folders.values())
    level = ""
    if depths == {1}:
        names = {path: parts[0] for path, parts in folders.items()}
    elif len(depths) == 1 and len({parts[-1] for parts in innermost}) == len(innermost) > 1:
        names, level = {path: parts[-1] for path, parts in folders.items()}, "innermost"
    else:
        shared = _num_shared(list(folders.values()))
        names, level = {path: parts[shared] for path, parts in folders.items()}, "outermost"
    class_names = sorted(set(names.values()))
    numbers = {name: number for number, name in enumerate(class_names)}
    paths = {split: [path for path, _ in group] for split, group in splits.items()}
    labels = {split: [numbers[names[path]] for path in group] for split, group in paths.items()}
    return ImageFolder(paths, labels, tuple(class_names), class_level=level)


def _num_shared(folders: list[tuple[str, ...]]) -> int:
    """Return the number of outermost folders that all images share, apart from the innermost folder of an image."""
    shared = 0
    while all(len(parts) > shared + 1 for parts in folders) and len({parts[shared] for parts in folders}) == 1:
        shared += 1
    return shared

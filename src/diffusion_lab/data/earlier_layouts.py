"""Folders of images that earlier versions read in another way, whose cache entries are therefore not used."""

import os
from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.files.image_folders import ImageFolder, split_named

NEW_EXTENSIONS = frozenset((".avif", ".avifs", ".heic", ".heif", ".hif", ""))
"""Extensions, and the lack of one, that earlier versions left out."""


def is_read_differently(root: Path, content: ImageFolder, with_classes: bool) -> bool:
    """Return whether earlier versions read other images or classes from a folder.

    The result may be True for a folder that is read in the same way, which is then decoded again to the same images.
    """
    paths = [path.split("/") for group in content.splits.values() for path in group]
    suffixes = {os.path.splitext(parts[-1])[1] for parts in paths}
    is_mixed_case = any(suffix not in (suffix.lower(), suffix.upper()) for suffix in suffixes)
    is_new = not NEW_EXTENSIONS.isdisjoint(suffix.lower() for suffix in suffixes)
    folders = {"/".join(parts[:depth]) for parts in paths for depth in range(1, len(parts))}
    has_links = any((root / folder).is_symlink() for folder in folders)
    merges_folders = content.class_level == "outermost"
    return is_new or is_mixed_case or has_links or merges_folders or _has_other_splits(paths, with_classes)


def _has_other_splits(paths: Sequence[list[str]], with_classes: bool) -> bool:
    """Return whether names of splits occur in places where earlier versions interpreted them differently."""
    positions = [next((k for k, part in enumerate(parts[:-1]) if split_named(part)), None) for parts in paths]
    inside = [(parts, k) for parts, k in zip(paths, positions, strict=True) if k is not None]
    if not inside:
        num_named = sum(split_named(parts[-1]) is not None for parts in paths)
        return 0 < num_named < len(paths)
    repeated = any(split_named(part) for parts, k in inside for part in parts[k + 1 : -1])
    return len(inside) < len(paths) or repeated or (with_classes and any(len(parts) == k + 2 for parts, k in inside))

"""Decoded image sets, in memory-mapped files or in memory."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
"""Types of labels that are converted to int64."""


class Images:
    """A set of decoded images, uint8 [N, C, H, W].  If it is memory-mapped, only requested batches are in memory.

    label: labels, int64 [N].  class_names: names of the classes; empty for a set without classes.
    condition: the N images on which an image-to-image network is conditioned, in the same order; None without them.
    """

    def __init__(
        self, pixels: np.ndarray | Tensor, label: np.ndarray | Tensor, class_names: Sequence[str] = (), *,
        index: np.ndarray | None = None, fingerprint: str | None = None, condition: "Images | None" = None,
    ) -> None:  # fmt: skip
        """pixels: images, uint8 [M, C, H, W].  label: labels, integers [M].

        index: indices of the N images that belong to the set, [N]; None selects all M images.
        fingerprint: fingerprint of all M images; None computes it on first access.
        Raises ValueError if an array has another type or shape, or if there is not one condition image per image.
        """
        self._pixels = pixels.numpy() if isinstance(pixels, Tensor) else pixels
        labels = label.numpy() if isinstance(label, Tensor) else label
        self._labels = labels.astype(np.int64) if getattr(labels, "dtype", None) in SMALL_INTEGERS else labels
        _require_arrays(self._pixels, self._labels)
        self._index, self._base_fingerprint = index, fingerprint
        self.class_names, self.condition = tuple(class_names), condition
        if condition is not None and (len(condition), condition.resolution) != (len(self), self.resolution):
            raise ValueError(
                f"`condition` must have one image of {self.resolution} x {self.resolution} pixels for each of the "
                f"{len(self):,} images, got {len(condition):,} of {condition.resolution} x {condition.resolution}."
            )

    @classmethod
    def open(cls, pixels: Path, label: Path, shape: Sequence[int], **options: Any) -> "Images":
        """Memory-map a set from two files: raw uint8 pixels of `shape` [N, C, H, W], and little-endian int64 labels."""
        # Mode "c" (copy on write) for labels: torch only shares the memory of writable arrays.
        return cls(
            np.memmap(pixels, np.uint8, "r", shape=tuple(shape)),
            np.memmap(label, "<i8", "c", shape=(shape[0],)),
            **options,
        )

    def __len__(self) -> int:
        return len(self._pixels) if self._index is None else len(self._index)

    @property
    def index(self) -> np.ndarray:
        """Index of each image among all M images: int64 [N]."""
        return np.arange(len(self)) if self._index is None else self._index

    @property
    def channels(self) -> int:
        return int(self._pixels.shape[1])

    @property
    def resolution(self) -> int:
        return int(self._pixels.shape[-1])

    @property
    def file(self) -> Path | None:
        """File from which the images are memory-mapped; None for images in memory."""
        name = getattr(self._pixels, "filename", None)
        return None if name is None else Path(name)

    @cached_property
    def label(self) -> Tensor:
        return torch.from_numpy(self._labels if self._index is None else self._labels[self._index])

    def gather(self, index: Tensor | np.ndarray) -> Tensor:
        """Copy the images with the indices `index` [B], in the order of `index`: uint8 [B, C, H, W].

        Raises IndexError if an index is out of range.
        """
        rows = index.numpy() if isinstance(index, Tensor) else index
        rows = rows if self._index is None else self._index[rows]
        return torch.from_numpy(np.asarray(self._pixels).take(rows, axis=0))

    def select(self, index: Tensor | np.ndarray) -> "Images":
        """Return the set of the images with the indices `index` [M], in the order of `index`.  Copies no pixels."""
        rows = index.numpy() if isinstance(index, Tensor) else index
        rows = rows if self._index is None else self._index[rows]
        condition = None if self.condition is None else self.condition.select(index)
        return self._replaced(index=rows, condition=condition)

    def with_condition(self, condition: "Images | None") -> "Images":
        """Return the same images with the condition images `condition`, one per image and in the same order."""
        return self._replaced(index=self._index, condition=condition)

    def _replaced(self, **parts: Any) -> "Images":
        return Images(self._pixels, self._labels, self.class_names, fingerprint=self._base_fingerprint, **parts)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, in batches of `size`, of which the last may be smaller: uint8 [B, C, H, W]."""
        for start in range(0, len(self), size):
            yield self.gather(np.arange(start, min(start + size, len(self))))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels and labels and, for a set from `select`, of the selected indices.

        The condition images have their own fingerprint.
        """
        base = self._base_fingerprint or content_fingerprint(self._pixels, self._labels)
        if self._index is None:
            return base
        return hashlib.sha256(base.encode() + self._index.astype("<i8").tobytes()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # Spawned data loading workers map the files again instead of receiving a copy of the pixels.
        state = {key: value for key, value in self.__dict__.items() if key != "label"}
        for key in ("_pixels", "_labels"):
            if isinstance(array := state[key], np.memmap):
                state[key] = _MappedFile(str(array.filename), array.dtype.str, array.mode, array.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        opened = {key: value.open() if isinstance(value, _MappedFile) else value for key, value in state.items()}
        self.__dict__.update(opened)


def _require_arrays(pixels: Any, label: Any) -> None:
    """Raise ValueError unless pixels are uint8 [N, C, H, W] and labels are int64 [N]."""
    for name, value, dtype, form, num_dimensions in (
        ("pixels", pixels, "uint8", "[N, C, H, W]", 4),
        ("label", label, "int64", "[N]", 1),
    ):
        if getattr(value, "dtype", None) != dtype or value.ndim != num_dimensions:
            given = f"{value.dtype} {list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__
            raise ValueError(f"`{name}` must be a {dtype} array or tensor of the shape {form}, got {given}.")
    if len(pixels) != len(label):
        raise ValueError(f"`label` must have one label per image, {len(pixels)}, got {len(label)}.")


class _MappedFile:
    """Name, dtype, mode and shape of a memory map, which the unpickling process opens again."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def open(self) -> np.memmap[Any, Any]:
        name, dtype, mode, shape = self.arguments
        return np.memmap(name, dtype, mode, shape=shape)


def content_fingerprint(pixels: np.ndarray, label: np.ndarray) -> str:
    """Return the SHA-256 of shape, pixels and labels, which is the same on all machines with identical decoders."""
    digest = hashlib.sha256(repr(tuple(int(side) for side in pixels.shape)).encode())
    for start in range(0, len(pixels), 1024):
        digest.update(np.ascontiguousarray(pixels[start : start + 1024]).data)
    digest.update(label.astype("<i8").tobytes())
    return digest.hexdigest()

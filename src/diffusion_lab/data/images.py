"""A set of images, wherever its pixels lie: in a mapped file or in memory."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Images:
    """A decoded set: uint8 images [N, C, H, W], of which only the batches asked for are ever in memory.

    label: int64 [N].  class_names: empty for a set without classes.
    """

    def __init__(
        self, pixels: np.ndarray | Tensor, label: np.ndarray | Tensor, class_names: Sequence[str] = (), *,
        index: np.ndarray | None = None, fingerprint: str | None = None,
    ) -> None:  # fmt: skip
        """pixels: uint8 [M, C, H, W].  label: int64 [M].  index: [N], which of them the set holds; None is all.

        fingerprint: of all M, where it is known; it is computed when first asked for otherwise.
        """
        self._pixels = pixels.numpy() if isinstance(pixels, Tensor) else pixels
        self._labels = label.numpy() if isinstance(label, Tensor) else label
        self._index, self._whole_fingerprint = index, fingerprint
        self.class_names = tuple(class_names)

    @classmethod
    def open(cls, pixels: Path, label: Path, shape: Sequence[int], **known: Any) -> "Images":
        """A set from files of raw uint8 pixels of this `shape` [N, C, H, W] and little-endian int64 labels."""
        # Labels can be written to without reaching the file: torch takes only such arrays without a copy.
        return cls(
            np.memmap(pixels, np.uint8, "r", shape=tuple(shape)),
            np.memmap(label, "<i8", "c", shape=(shape[0],)),
            **known,
        )

    def __len__(self) -> int:
        return len(self._pixels) if self._index is None else len(self._index)

    @property
    def channels(self) -> int:
        return int(self._pixels.shape[1])

    @property
    def resolution(self) -> int:
        return int(self._pixels.shape[-1])

    @cached_property
    def label(self) -> Tensor:
        return torch.from_numpy(self._labels if self._index is None else self._labels[self._index])

    def gather(self, index: Tensor | np.ndarray) -> Tensor:
        """The images at `index` [B], in that order, in memory of their own: uint8 [B, C, H, W].

        Raises IndexError for numbers out of range.
        """
        rows = index.numpy() if isinstance(index, Tensor) else index
        rows = rows if self._index is None else self._index[rows]
        return torch.from_numpy(np.asarray(self._pixels).take(rows, axis=0))

    def select(self, index: Tensor | np.ndarray) -> "Images":
        """The images at `index` [M], in that order: a view that copies no pixels."""
        rows = index.numpy() if isinstance(index, Tensor) else index
        rows = rows if self._index is None else self._index[rows]
        return Images(self._pixels, self._labels, self.class_names, index=rows, fingerprint=self._whole_fingerprint)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time: uint8 [size or fewer, C, H, W]."""
        for start in range(0, len(self), size):
            yield self.gather(np.arange(start, min(start + size, len(self))))

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the data: sha256 of pixels and labels, and of the choice where it is a part."""
        whole = self._whole_fingerprint or content_fingerprint(self._pixels, self._labels)
        if self._index is None:
            return whole
        return hashlib.sha256(whole.encode() + self._index.astype("<i8").tobytes()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # A process that is spawned to load batches maps the files again instead of receiving a copy.
        state = {key: value for key, value in self.__dict__.items() if key != "label"}
        for key in ("_pixels", "_labels"):
            if isinstance(array := state[key], np.memmap):
                state[key] = _Map(str(array.filename), array.dtype.str, array.mode, array.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        opened = {key: value.open() if isinstance(value, _Map) else value for key, value in state.items()}
        self.__dict__.update(opened)


class _Map:
    """A mapped file by its name."""

    def __init__(self, *description: Any) -> None:
        self.description = description

    def open(self) -> np.memmap[Any, Any]:
        name, dtype, mode, shape = self.description
        return np.memmap(name, dtype, mode, shape=shape)


def content_fingerprint(pixels: np.ndarray, label: np.ndarray) -> str:
    """sha256 of shape, pixels and labels: the same on every machine that decodes alike."""
    digest = hashlib.sha256(repr(tuple(int(side) for side in pixels.shape)).encode())
    for start in range(0, len(pixels), 1024):
        digest.update(np.ascontiguousarray(pixels[start : start + 1024]).data)
    digest.update(label.astype("<i8").tobytes())
    return digest.hexdigest()

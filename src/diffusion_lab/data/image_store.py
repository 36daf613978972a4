"""Any Hugging Face image set, by hub name or from a local folder -> uint8 images and labels in memory."""

import os
import socket
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lab.randomness import permutation

if TYPE_CHECKING:  # the library takes half a second to import: a refused command should not wait for it
    from datasets import Dataset

MODES = {1: "L", 3: "RGB"}
FITS = ("pad", "resize")


@dataclass(frozen=True)
class Images:
    """A decoded set.  pixels: uint8 [N, C, H, W].  label: int64 [N].  class_names: empty for a set without classes."""

    pixels: Tensor
    label: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)

    def select(self, index: Tensor) -> "Images":
        """The images at `index` [M], in that order."""
        return Images(self.pixels[index], self.label[index], self.class_names)


class ImageStore:
    """Where a set's images are, and how they become squares of one size.

    hub_name: name on the Hugging Face hub, used where `path` is None.  path: local folder in the same layout.
    image_column, label_column: their names in the set; label_column None gives label 0 to all.
    fit: "pad" puts the image in the middle of black; "resize" crops the middle square and resizes it with antialiasing.
    classes: names of the only classes to keep; None keeps all.
    num_held_out: images of the train split that are set aside, always the same ones, as split "held_out".
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
        fit: Literal["pad", "resize"] = "resize",
        classes: Sequence[str] | None = None,
        num_held_out: int = 0,
    ) -> None:
        if channels not in MODES:
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}.")
        if fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit}.")
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {resolution}.")
        if num_held_out < 0:
            raise ValueError(f"num_held_out must be at least 0, got {num_held_out}.")
        self.hub_name, self.path = hub_name, None if path is None else Path(path).expanduser()
        self.image_column, self.label_column = image_column, label_column
        self.channels, self.resolution, self.fit = channels, resolution, fit
        self.classes, self.num_held_out = None if classes is None else tuple(classes), num_held_out

    def locate(self) -> None:
        """Raises FileNotFoundError, saying what was looked for and how to get it, unless the set is within reach."""
        if self.path is not None:
            if not self.path.is_dir():
                raise FileNotFoundError(f"data.path must be a folder of images or parquet files, got {self.path}.")
            if not any(file.is_file() for file in self.path.rglob("*")):
                raise FileNotFoundError(
                    f"data.path must hold images or parquet files (train-*.parquet, test-*.parquet), "
                    f"but {self.path} is empty."
                )
        elif self.hub_name is None:
            raise FileNotFoundError("data.path must name a folder of images or parquet files, got nothing.")
        elif not _hub_in_reach():
            self._require_cached()

    def load(self, split: str = "train") -> Images:
        """The images of "train", of "held_out" (a part of train), or of any other split that the set has.

        Raises ValueError where the set has no such split, columns or classes; FileNotFoundError where it is missing.
        """
        dataset = self._open("train" if split == "held_out" else split)
        names = getattr(dataset.features[self.label_column], "names", None) if self.label_column else None
        wanted = self._wanted_labels(tuple(names or ()))
        images = self._decode(dataset, tuple(names or ()))
        if self.num_held_out and split in ("train", "held_out"):
            images = images.select(self._part(len(images), split))
        elif split == "held_out":
            raise ValueError("data.num_held_out must be above 0 to ask for held-out images, got 0.")
        return images if wanted is None else images.select(torch.isin(images.label, wanted).nonzero().squeeze(1))

    def _part(self, size: int, split: str) -> Tensor:
        if self.num_held_out >= size:
            raise ValueError(f"data.num_held_out must be under the set's {size} images, got {self.num_held_out}.")
        order = permutation(seed=0, epoch=0, size=size)  # not the run's seed: runs must agree on what is held out
        kept = order[self.num_held_out :] if split == "train" else order[: self.num_held_out]
        return torch.from_numpy(np.sort(kept))

    def _open(self, split: str) -> "Dataset":
        self.locate()
        import datasets

        datasets.disable_progress_bars()
        source = str(self.hub_name if self.path is None else self.path)
        try:
            dataset = datasets.load_dataset(source, split=split)
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            setting = "data.hub_name" if self.path is None else "data.path"
            reason = " ".join(str(error).split())
            raise ValueError(f"{setting}={source} cannot be read as images with a split {split!r}: {reason}") from error
        wanted = [self.image_column] + ([self.label_column] if self.label_column else [])
        for column in wanted:
            if column not in dataset.column_names:
                raise ValueError(
                    f"data.image_column and data.label_column must be among {dataset.column_names} "
                    f"for {source}, got {column}."
                )
        return dataset

    def _decode(self, dataset: "Dataset", names: tuple[str, ...]) -> Images:
        pixels = np.empty((len(dataset), self.channels, self.resolution, self.resolution), dtype=np.uint8)
        index = 0
        try:
            for index, image in enumerate(dataset[self.image_column]):
                pixels[index] = self._square(image)
        except OSError as error:
            source = self.hub_name if self.path is None else self.path
            raise ValueError(f"{source} holds an image that cannot be read, near number {index}: {error}.") from error
        if self.label_column is None:
            return Images(torch.from_numpy(pixels), torch.zeros(len(dataset), dtype=torch.int64), ())
        label = torch.tensor(dataset[self.label_column][:], dtype=torch.int64)
        return Images(torch.from_numpy(pixels), label, names)

    def _square(self, image: Image.Image) -> np.ndarray:
        side = self.resolution
        if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255 instead of scaling them
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.mode != MODES[self.channels]:
            image = image.convert(MODES[self.channels])
        if image.size != (side, side):
            image = self._padded(image) if self.fit == "pad" else self._resized(image)
        return np.asarray(image).reshape(side, side, self.channels).transpose(2, 0, 1)

    def _padded(self, image: Image.Image) -> Image.Image:
        side = self.resolution
        if max(image.size) > side:
            raise ValueError(
                f"data.resolution must be at least the images' side to pad them, {max(image.size)}, got {side}; "
                "try data.fit=resize."
            )
        canvas = Image.new(image.mode, (side, side))
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return canvas

    def _resized(self, image: Image.Image) -> Image.Image:
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        # Cropped first: resizing a box of the image would let its surroundings leak in at the edges.
        square = image.crop((left, top, left + edge, top + edge))
        return square.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)

    def _wanted_labels(self, names: tuple[str, ...]) -> Tensor | None:
        if self.classes is None:
            return None
        if not self.classes or any(name not in names for name in self.classes):
            raise ValueError(f"data.classes must be among {', '.join(names)}, got {', '.join(self.classes)}.")
        return torch.tensor([names.index(name) for name in self.classes])

    def _require_cached(self) -> None:
        # The libraries would retry an unreachable hub for 24 seconds; told that they are offline, they look in their
        # cache at once. Both read the variable when first imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
        import datasets

        try:
            datasets.load_dataset_builder(self.hub_name)
        except (ConnectionError, OSError, ValueError) as error:
            raise FileNotFoundError(
                f"data.hub_name={self.hub_name} is neither in the local cache nor within reach (no network?): run once "
                "with network, or set data.path to a folder that holds its files (train-*.parquet, test-*.parquet)."
            ) from error


def _hub_in_reach(timeout: float = 2.0) -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():
        return True  # behind a proxy a direct connection says nothing
    endpoint: Any = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout).close()
    except OSError:
        return False
    return True

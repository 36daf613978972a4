"""Images a second of one thread, from a set to float batches in [-1, 1], half of them mirrored.

    python benchmarks/loading.py [--path FOLDER_OF_CIFAR10]

Ours beside the two usual ways, on the same images, in turns within one process: `datasets` with a transform and a
DataLoader, and a torchvision set with its transforms and a DataLoader. Without --path, on ten thousand synthetic
32 x 32 PNGs. What is prepared once (our cache, torchvision's array) is not timed; it is printed beside.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torchvision
from lightning import Trainer
from measuring import Row, in_turns, main, timed
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from diffusion_lab.data.image_datamodule import ImageDataModule, mirror
from diffusion_lab.data.image_store import ImageStore

BATCH_SIZE = 128
USUAL = transforms.Compose(
    [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
)


class InMemory(torchvision.datasets.CIFAR10):
    """torchvision's CIFAR-10, item by item as it is, with images of any set."""

    def __init__(self, pixels: np.ndarray, label: list[int]) -> None:
        self.data, self.targets, self.transform, self.target_transform = pixels, label, USUAL, None


def synthetic(folder: Path, size: int = 10_000) -> Path:
    """A parquet set of noise over a gradient."""
    randomness, images = np.random.default_rng(0), []
    for _ in range(size):
        buffer = io.BytesIO()
        levels = randomness.integers(0, 128, (32, 32, 3)) + np.arange(32)[:, None, None] * 4
        Image.fromarray(levels.astype(np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"img": images, "label": [0] * size}, features=features)
    rows.to_parquet(folder / "train-0.parquet")
    return folder


def ours(store: ImageStore) -> Iterator[Tensor]:
    data = ImageDataModule(store, batch_size=BATCH_SIZE, seed=0, horizontal_flip=True)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return (data.on_after_batch_transfer(batch, 0).x_0 for batch in data.train_dataloader())


def gathered(store: ImageStore) -> Iterator[Tensor]:
    """Our gather, flip and scale alone: the order of the images and their random numbers are drawn before."""
    data, images = ImageDataModule(store, batch_size=BATCH_SIZE, seed=0, horizontal_flip=True), store.load()
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    drawn = [batch.draws for batch in islice(data.train_dataloader(), 64)]
    orders = np.random.default_rng(0).integers(0, len(images), (64, BATCH_SIZE))
    for index, draws in cycle(zip(orders, drawn, strict=True)):
        x_0 = images.gather(index)
        mirror(x_0, draws.flips(0.5))
        yield x_0.float().div_(127.5).sub_(1)


def of_datasets(path: Path) -> Iterator[Tensor]:
    rows = datasets.load_dataset(str(path), split="train", cache_dir=str(path.parent / "benchmark_cache"))

    def transformed(batch: dict[str, Any]) -> dict[str, Any]:
        return {"img": [USUAL(image) for image in batch["img"]], "label": batch["label"]}

    rows.set_transform(transformed)
    return endless(DataLoader(rows, BATCH_SIZE, shuffle=True), "img")


def of_torchvision(store: ImageStore) -> Iterator[Tensor]:
    images = store.load()
    pixels = torch.cat(list(images.batches(1000))).permute(0, 2, 3, 1).contiguous().numpy()
    return endless(DataLoader(InMemory(pixels, images.label.tolist()), BATCH_SIZE, shuffle=True), 0)


def endless(loader: DataLoader[Any], key: Any) -> Iterator[Tensor]:
    while True:
        yield from (batch[key] for batch in loader)


def rate(batches: Iterator[Tensor], seconds: float) -> float:
    """Images a second, over about this many seconds."""
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - started)


def decode_with_datasets(path: Path) -> None:
    """Once through the set, into memory."""
    rows = datasets.load_dataset(str(path), split="train", cache_dir=str(path.parent / "benchmark_cache"))
    for batch in rows.with_format("numpy").iter(1000):
        np.stack(batch["img"])


def rows(arguments: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    torch.empty(7_000_000)  # as a network's activations do: lets the allocator keep pages from batch to batch
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = Path(arguments.path) if arguments.path else synthetic(Path(tempfile.mkdtemp(dir=folder)))
        linked = work / "set"
        linked.symlink_to(path.resolve())
        store = ImageStore(None, linked, image_column="img", cache_folder=work / "cache")
        built = timed(store.load)
        read = timed(lambda: decode_with_datasets(linked))
        ways = {
            "gathered": gathered(store),
            "ours": ours(store),
            "torchvision": of_torchvision(store),
            "datasets": of_datasets(linked),
        }
        jobs = {name: lambda way=way: rate(way, arguments.seconds) for name, way in ways.items()}
        rates = in_turns(jobs, arguments.rounds)
        size = len(store.load())
    what = f"float batches of {BATCH_SIZE} of {size:,} images of 32 x 32, one thread"
    return [
        Row(what, "images/s", rates["ours"], rates["torchvision"], "torchvision's CIFAR10, DataLoader", 20, True),
        Row(what, "images/s", rates["ours"], rates["datasets"], "datasets with a transform, DataLoader", 20, True),
        Row(what, "images/s", rates["ours"], [200_000.0], "what we ask for", 1.0, True),
        Row(
            f"decoding {size:,} images once",
            "s",
            [built],
            [read],
            "datasets, into memory",
            1.0,
            note="ours writes them to its cache too, and compares the checksums of every file",
        ),
    ]


if __name__ == "__main__":
    main(
        __doc__,
        rows,
        path=(str, "", "folder of CIFAR-10 as parquet (column img)"),
        seconds=(float, 1.0, "of each turn of each way"),
    )

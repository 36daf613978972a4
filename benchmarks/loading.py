"""Images per second of one thread, from a data set to float batches in [-1, 1], half of the images mirrored.

    python benchmarks/loading.py [--path FOLDER_OF_CIFAR10]

Ours is compared, on the same images and in the same process, with the two usual ways: `datasets` with a transform and a
DataLoader, and a torchvision data set with its transforms and a DataLoader. Without --path, the images are ten thousand
synthetic 32 x 32 PNGs. The rates exclude one-time preparation (our cache, torchvision's array); decoding has its own
row.
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
from measuring import Row, interleave, main, timed
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from diffusion_lab.data.image_datamodule import ImageDataModule, horizontal_flip_
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.pixels import from_uint8

BATCH_SIZE = 128
TRANSFORM = transforms.Compose(
    [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
)


class InMemory(torchvision.datasets.CIFAR10):
    """torchvision's CIFAR10 with unchanged item access, on given images."""

    def __init__(self, pixels: np.ndarray, label: list[int]) -> None:
        self.data, self.targets, self.transform, self.target_transform = pixels, label, TRANSFORM, None


def write_synthetic_set(folder: Path, size: int = 10_000) -> Path:
    """Write a parquet set of noise over a gradient and return its folder."""
    generator, images = np.random.default_rng(0), []
    for _ in range(size):
        buffer = io.BytesIO()
        levels = generator.integers(0, 128, (32, 32, 3)) + np.arange(32)[:, None, None] * 4
        Image.fromarray(levels.astype(np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"img": images, "label": [0] * size}, features=features)
    rows.to_parquet(folder / "train-0.parquet")
    return folder


def our_batches(store: ImageStore) -> Iterator[Tensor]:
    data = ImageDataModule(store, batch_size=BATCH_SIZE, seed=0, horizontal_flip=True)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return (data.on_after_batch_transfer(batch, 0).x_0 for batch in data.train_dataloader())


def gathered_batches(store: ImageStore) -> Iterator[Tensor]:
    """Yield batches by our gather, flip and scaling only; image order and random numbers are prepared beforehand."""
    data, images = ImageDataModule(store, batch_size=BATCH_SIZE, seed=0, horizontal_flip=True), store.load()
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    prepared = [batch.draws for batch in islice(data.train_dataloader(), 64)]
    orders = np.random.default_rng(0).integers(0, len(images), (64, BATCH_SIZE))
    for index, draws in cycle(zip(orders, prepared, strict=True)):
        x_0 = images.gather(index)
        horizontal_flip_(x_0, draws.flips(0.5))
        yield from_uint8(x_0)


def datasets_batches(path: Path) -> Iterator[Tensor]:
    rows = datasets.load_dataset(str(path), split="train", cache_dir=str(path.parent / "benchmark_cache"))

    def transformed(batch: dict[str, Any]) -> dict[str, Any]:
        return {"img": [TRANSFORM(image) for image in batch["img"]], "label": batch["label"]}

    rows.set_transform(transformed)
    return repeat(DataLoader(rows, BATCH_SIZE, shuffle=True), "img")


def torchvision_batches(store: ImageStore) -> Iterator[Tensor]:
    images = store.load()
    pixels = torch.cat(list(images.batches(1000))).permute(0, 2, 3, 1).contiguous().numpy()
    return repeat(DataLoader(InMemory(pixels, images.label.tolist()), BATCH_SIZE, shuffle=True), 0)


def repeat(loader: DataLoader[Any], key: Any) -> Iterator[Tensor]:
    """Yield the images of the loader's batches, epoch after epoch."""
    while True:
        yield from (batch[key] for batch in loader)


def rate(batches: Iterator[Tensor], seconds: float) -> float:
    """Return images per second, measured over about `seconds` seconds."""
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - started)


def decode_with_datasets(path: Path) -> None:
    """Decode the complete set once, into memory."""
    rows = datasets.load_dataset(str(path), split="train", cache_dir=str(path.parent / "benchmark_cache"))
    for batch in rows.with_format("numpy").iter(1000):
        np.stack(batch["img"])


def rows(arguments: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    # glibc's malloc raises its mmap threshold after a large block is freed, as it does in training with a network's
    # activations. From then on it reuses the memory of a batch for the next one.
    torch.empty(7_000_000)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = Path(arguments.path) if arguments.path else write_synthetic_set(Path(tempfile.mkdtemp(dir=folder)))
        linked = work / "set"
        linked.symlink_to(path.resolve())
        store = ImageStore(None, linked, image_column="img", cache_folder=work / "cache")
        our_seconds = timed(store.load)
        their_seconds = timed(lambda: decode_with_datasets(linked))
        loaders = {
            "gathered": gathered_batches(store),
            "ours": our_batches(store),
            "torchvision": torchvision_batches(store),
            "datasets": datasets_batches(linked),
        }
        jobs = {name: lambda batches=batches: rate(batches, arguments.seconds) for name, batches in loaders.items()}
        rates = interleave(jobs, arguments.rounds)
        size = len(store.load())
    what = f"float batches of {BATCH_SIZE} from {size:,} images of 32 x 32, one thread"
    return [
        Row(what, "images/s", rates["ours"], rates["torchvision"], "torchvision's CIFAR10, DataLoader", 20, True),
        Row(what, "images/s", rates["ours"], rates["datasets"], "datasets with a transform, DataLoader", 20, True),
        Row(what, "images/s", rates["ours"], [200_000.0], "our target", 1.0, True),
        Row(
            f"decoding {size:,} images once",
            "s",
            [our_seconds],
            [their_seconds],
            "datasets, into memory",
            1.0,
            note="ours also writes its cache and verifies the checksums in every file",
        ),
    ]


if __name__ == "__main__":
    main(
        __doc__,
        rows,
        path=(str, "", "folder of CIFAR-10 as parquet files (column img)"),
        seconds=(float, 1.0, "duration of each measurement"),
    )

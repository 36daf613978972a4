"""Measure whether the memory of training grows with the data set.

    python benchmarks/large_set.py [--images 1000000] [--folder FOLDER]

Writes a parquet set of 64 x 64 images and one with a tenth of them. For each set, a separate process builds the cache,
loads 300 batches of 256 images through the data module, and prints its resident memory. RssAnon is private to the
process. RssFile counts pages of the memory-mapped cache, which the system reclaims when it needs memory. A million
images take 30 GB in FOLDER while the script runs.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE, BATCH_SIZE, BATCHES, IMAGES_PER_FILE = 64, 256, 300, 50_000


def write_set(folder: Path, size: int) -> None:
    """Write `size` different images, each of two colors that meet along a line."""
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number, start in enumerate(range(0, size, IMAGES_PER_FILE)):
        contents = []
        for k in range(start, min(start + IMAGES_PER_FILE, size)):
            generator = np.random.default_rng(k)
            colors = generator.integers(0, 256, (2, 3), dtype=np.uint8)
            is_second = generator.normal() * (rows - SIDE / 2) + generator.normal() * (columns - SIDE / 2) > 0
            buffer = io.BytesIO()
            Image.fromarray(colors[is_second.astype(np.intp)]).save(buffer, "PNG", compress_level=1)
            contents.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"image": pa.array(contents)})
        pq.write_table(table, folder / f"train-{number:05}.parquet", row_group_size=1000)


def memory() -> str:
    """Return RssAnon and RssFile of this process in MB, as text."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return "  ".join(f"{name} {int(fields[name].split()[0]) / 1000:7,.0f} MB" for name in ("RssAnon", "RssFile"))


def load_batches(folder: Path) -> None:
    """Build the cache if it is missing, load batches, and print time, memory and rate."""
    from lightning import Trainer

    from diffusion_lab.data.image_datamodule import ImageDataModule
    from diffusion_lab.data.image_store import ImageStore

    store = ImageStore(
        None, folder, label_column=None, resolution=SIDE, cache_folder=folder.parent / f"{folder.name}_cache"
    )
    started = time.perf_counter()
    size = len(store.load())
    opened = time.perf_counter() - started
    before = memory()
    data = ImageDataModule(store, batch_size=BATCH_SIZE, seed=0, horizontal_flip=True)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    started = time.perf_counter()
    for batch in islice(data.train_dataloader(), BATCHES):
        data.on_after_batch_transfer(batch, 0)
    rate = BATCHES * BATCH_SIZE / (time.perf_counter() - started)
    print(f"{size:9,} images: opened in {opened:6.1f} s  before {before}  after {memory()}  {rate:,.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="size of the larger set")
    parser.add_argument("--folder", type=Path, help="where to write the sets and caches; default: a temporary folder")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        return load_batches(arguments.load)
    work = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        for size in (arguments.images // 10, arguments.images):
            started = time.perf_counter()
            write_set(work / "set", size)
            print(f"{size:9,} images: written in {time.perf_counter() - started:.0f} s", flush=True)
            for _ in ("build the cache", "read it"):
                subprocess.run([sys.executable, "-W", "ignore", __file__, "--load", work / "set"], check=True)
            for folder in work.iterdir():
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(work)
        os.sync()
    return None


if __name__ == "__main__":
    main()

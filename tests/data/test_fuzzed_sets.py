"""Mutated image sets: each is loaded or refused with one sentence in limited time, and writes only to its cache.

The mutations depend on the seed alone. A failure names the seed.
"""

import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.data.images import Images
from diffusion_lab.files.image_folders import NoClassFoldersError
from support.time_limit import time_limit

SIZE = 12
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
NAMES = (
    *("0.png", "-1.png", "=1+1.png", "a\nb.png", "\x1b[31mred.png", "[bold].png", "%s.png", "{0}.png", "..png", ".png"),
    *("test", "train", "train-0.parquet", "metadata.csv", "README.md", "state.json", "a.zip", "a.tar"),
    *("a" * 250 + ".png", "dataset_info.json", "a.csv", "a.jsonl", "a.h5", "ünï.png", "a.arrow"),
    os.fsdecode(b"\xff\xfe.png"),
)


def encoded(generator: random.Random) -> bytes:
    buffer = io.BytesIO()
    pixels = np.frombuffer(generator.randbytes(192), np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(buffer, generator.choice(FORMATS))
    return buffer.getvalue()


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Return content, in a third of the cases as it is, with bytes replaced, removed, repeated, or cut at the end."""
    changed = bytearray(content)
    for _ in range(generator.choice((0, 0, 1, 1, 3, 30))):
        position = generator.randrange(len(changed) + 1)
        length = generator.choice((1, 1, 1, 2, 4, 8))
        replacement = generator.choice((generator.randbytes(length), b"\xff" * length, b"\0" * length))
        kept = generator.choice((length, length, length, 0, 2 * length))  # of another length: inserted or removed
        changed[position : position + kept] = replacement
    cut = generator.randrange(len(changed) + 1) if generator.random() < 0.1 else len(changed)
    return bytes(changed[:cut])


def write_parquet(folder: Path, generator: random.Random) -> None:
    paths = ["0.png", "../canary.png", "/dev/zero", "fifo.png", "", None, "\x1b[31m", "http://localhost:9/a.png"]
    contents = [generator.choice((*[encoded(generator)] * 8, None, b"")) for _ in range(SIZE)]
    images = [{"bytes": content, "path": generator.choice(paths)} for content in contents]
    columns = {
        "structs": images,
        "bytes": contents,
        "paths": [str(generator.choice(paths)) for _ in contents],
        "numbers": list(range(SIZE)),
    }
    labels = [list(range(SIZE)), ["a", "b", None] * 4, [0.5] * SIZE, [[1]] * SIZE, [-(2**62)] * SIZE]
    image = columns[generator.choice(("structs", "structs", "structs", "bytes", "paths", "numbers"))]
    table = pa.table({"image": image, "label": generator.choice([labels[0], labels[0], *labels])})
    buffer = io.BytesIO()
    compression = generator.choice(("none", "snappy", "zstd", "gzip"))
    pq.write_table(table, buffer, compression=compression, use_dictionary=generator.random() < 0.5, row_group_size=5)
    (folder / "train-0.parquet").write_bytes(mutated(buffer.getvalue(), generator))


def write_folder(folder: Path, generator: random.Random) -> None:
    targets = ("/", "/dev/zero", "/proc", "..", ".", "nowhere", "fifo.png", "../canary.png", folder.name)
    for _ in range(generator.randrange(1, 2 * SIZE)):
        parents = [generator.choice(("cat", "dog", "train", "test", *NAMES)) for _ in range(generator.randrange(3))]
        file = folder.joinpath(*parents, generator.choice((f"{generator.randrange(99)}.png", *NAMES)))
        try:
            if not file.parent.resolve().is_relative_to(folder.resolve()):  # below a link
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            kind = generator.choice(("file", "file", "file", "link", "fifo", "folder", "sparse"))
            if kind == "link":
                file.symlink_to(generator.choice(targets))
            elif kind == "fifo":
                os.mkfifo(file)
            elif kind == "folder":
                file.mkdir()
            elif not file.exists():
                file.write_bytes(mutated(encoded(generator), generator))
                if kind == "sparse":
                    os.truncate(file, generator.choice((0, 10**6, 10**12)))
        except OSError:  # a file is in the place of a folder, or the other way around
            continue


def listed(*folders: Path) -> set[str]:
    return {os.path.join(parent, name) for folder in folders for parent, _, names in os.walk(folder) for name in names}


def loaded(folder: Path, generator: random.Random) -> Images | None:
    """Load a set within a time limit.  Returns None if the set is refused with one sentence."""
    settings = {
        "label_column": generator.choice((None, "label")),
        "on_error": generator.choice(("skip", "skip", "raise")),
    }
    store = ImageStore(None, folder, channels=1, resolution=4, cache_folder=folder.parent / "cache", **settings)  # type: ignore[arg-type]
    try:
        with time_limit(30):
            store.original_sizes()
            return store.load()
    except (ValueError, FileNotFoundError) as error:
        refusal = error
    assert type(refusal) in (ValueError, FileNotFoundError, NoClassFoldersError)  # no UnicodeError of a library
    message = str(refusal)
    assert 20 < len(message) < 3000
    assert "\n" not in message.replace("a\nb.png", "")
    assert str(folder) in message or "data." in message, message
    return None


WRITERS = {"parquet": write_parquet, "folder": write_folder}


@pytest.mark.parametrize("num_sets", [8, pytest.param(300, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore")  # libraries leave damaged files open
def test_a_mutated_set_is_loaded_or_refused_with_one_sentence(kind: str, num_sets: int, tmp_path: Path) -> None:
    import datasets

    write: Callable[[Path, random.Random], None] = WRITERS[kind]
    num_loaded = 0
    Image.new("L", (4, 4), 99).save(tmp_path / "canary.png")
    downloads = Path(datasets.config.HF_DATASETS_CACHE)
    before = listed(downloads)
    for seed in range(num_sets):
        generator, folder = random.Random(f"{kind} {seed}"), tmp_path / "set"
        folder.mkdir()
        os.mkfifo(folder / "fifo.png")
        write(folder, generator)
        files = listed(folder)
        try:
            images = loaded(folder, generator)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        if images is not None:
            num_loaded += 1
            assert len(images.gather(np.arange(len(images)))) == len(images) == len(images.label) > 0
            del images
        assert listed(folder) == files
        assert {path.name for path in tmp_path.iterdir()} <= {"set", "cache", "canary.png"}
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert listed(downloads) == before
    assert num_sets / 10 < num_loaded < num_sets

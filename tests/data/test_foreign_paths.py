"""Paths that a stranger wrote into a set: no file outside of the set is opened, and nothing waits or never ends."""

import csv
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lab.data.image_store import ImageStore
from support.time_limit import time_limit

CANARY = 99
"""Gray level of an image outside of the set."""
OUTSIDE = "its path is outside of the folder of the set; data.image_root=FOLDER allows paths below FOLDER"


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with time_limit(60):
        yield


def encoded(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


def write(file: Path, level: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(level))
    return file


def store(folder: Path, **settings: Any) -> ImageStore:
    settings = {"label_column": None, "cache_folder": folder.parent / "cache"} | settings
    return ImageStore(None, folder, channels=1, resolution=4, **settings)


def levels(folder: Path, **settings: Any) -> list[int]:
    images = store(folder, **settings).load()
    return [int(level) for level in images.gather(np.arange(len(images)))[:, 0, 0, 0]]


def reasons(folder: Path) -> list[str]:
    """Return the reason for each image that was left out as damaged."""
    (file,) = (folder.parent / "cache").rglob("damaged.csv")
    with file.open() as stream:
        return [row["reason"] for row in csv.DictReader(stream)]


def opened_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the path of each file that is opened as an image is appended."""
    opened, original = list[str](), os.open

    def record(path: Any, *arguments: Any, **options: Any) -> int:
        opened.append(os.fspath(path) if not isinstance(path, int) else "")
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, "open", record)
    return opened


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, str]:
    """Paths that a table may contain, none of which is an image of the set, and the reason to leave out each."""
    write(tmp_path / "outside" / "canary.png", CANARY)
    write(tmp_path / "set-other" / "canary.png", CANARY)
    for fifo in (tmp_path / "outside" / "fifo.png", tmp_path / "set" / "fifo.png"):
        fifo.parent.mkdir(exist_ok=True)
        os.mkfifo(fifo)
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "outside" / "canary.png")
    (tmp_path / "set" / "folder.png").symlink_to(tmp_path / "outside")
    (tmp_path / "set" / "loop.png").symlink_to("loop.png")
    irregular = "the image file cannot be read: it is not a regular file"
    return {
        str(tmp_path / "outside" / "canary.png"): OUTSIDE,
        "../outside/canary.png": OUTSIDE,
        "nested/../../outside/canary.png": OUTSIDE,
        str(tmp_path / "set-other" / "canary.png"): OUTSIDE,  # begins with the path of the set
        str(tmp_path / "outside" / "fifo.png"): OUTSIDE,
        "link.png": OUTSIDE,
        "folder.png/canary.png": OUTSIDE,
        "fifo.png": irregular,
        "/dev/zero": OUTSIDE,
        "/dev/stdin": OUTSIDE,
        "/proc/self/environ": OUTSIDE,
        "/proc/self/fd/0": OUTSIDE,
        "http://localhost:9/canary.png": "the image file cannot be read: No such file or directory",
        "~/canary.png": "the image file cannot be read: No such file or directory",
        "null\0byte.png": OUTSIDE,
        "n" * 5000 + ".png": "the image file cannot be read: File name too long",
        "missing.png": "the image file cannot be read: No such file or directory",
        "loop.png": "the image file cannot be read: Too many levels of symbolic links",
    }


@pytest.mark.parametrize("kind", ["paths", "structs", "json", "saved"])
def test_paths_to_other_places_are_left_out_with_the_reason_and_never_opened(
    kind: str, tmp_path: Path, foreign: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    own = [f"{number}.png" for number in range(len(foreign))]
    for number, name in enumerate(own):
        write(folder / name, number)
    paths = [*own[:2], *foreign, *own[2:]]
    write_table(folder, kind, paths)
    opened = opened_paths(monkeypatch)
    assert levels(folder, label_column="label" if kind == "paths" else None) == list(range(len(own)))
    assert reasons(folder) == list(foreign.values())
    assert [path for path in opened if "canary" in path or path.startswith(("/dev/z", "/proc/self"))] == []


def write_table(folder: Path, kind: str, paths: list[str]) -> None:
    rows = [{"bytes": None, "path": path} for path in paths]
    if kind == "paths":
        pq.write_table(pa.table({"image": paths, "label": [0] * len(paths)}), folder / "train.parquet")
    elif kind == "structs":
        images = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        table = pa.table({"image": images, "label": [0] * len(paths)})
        for number in range(len(paths)):  # more tables than image files
            (folder / f"more-{number}").mkdir()
            pq.write_table(table.slice(number, 1), folder / f"train-{number:03}.parquet")
    elif kind == "json":
        import json

        lines = [json.dumps({"image": {"bytes": None, "path": path}}) for path in paths]
        (folder / "train.jsonl").write_text("\n".join(lines))
        for number in range(len(paths)):
            (folder / f"{number}.tar").touch()
    else:
        import datasets

        features = datasets.Features({"image": datasets.Image(decode=False)})
        datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": None}]}, features).save_to_disk(folder)
        (file,) = folder.glob("*.arrow")
        table = pa.table({"image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
        with pa.ipc.new_stream(file, features.arrow_schema) as stream:
            stream.write_table(table.cast(features.arrow_schema))


def test_image_root_allows_the_files_below_it_and_no_others(tmp_path: Path) -> None:
    allowed = [write(tmp_path / "images" / f"{k}.png", k) for k in range(4)]
    other = write(tmp_path / "images-private" / "canary.png", CANARY)
    (tmp_path / "set").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(other)
    paths = [*map(str, allowed), str(other), str(tmp_path / "images" / "link.png"), str(tmp_path / "images/../x.png")]
    pq.write_table(pa.table({"image": paths}), tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match=r"names other places, such as .*0\.png; data\.image_root=FOLDER allows"):
        levels(tmp_path / "set")
    assert levels(tmp_path / "set", image_root=tmp_path / "images") == [0, 1, 2, 3]
    assert reasons(tmp_path / "set") == [OUTSIDE] * 3
    assert levels(tmp_path / "set", image_root=tmp_path)[:5] == [0, 1, 2, 3, CANARY]
    with pytest.raises(ValueError, match=r"contains an image that cannot be read \(number 4: its path is outside"):
        levels(tmp_path / "set", image_root=tmp_path / "images", on_error="raise")
    with pytest.raises(FileNotFoundError, match=r"data\.image_root must be a folder, got .*nowhere, which does not"):
        levels(tmp_path / "set", image_root=tmp_path / "nowhere")


def test_a_folder_follows_links_to_regular_files_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = write(tmp_path / "set" / "0.png", 0).parent
    (folder / "1.png").symlink_to(write(tmp_path / "images" / "1.png", 1))
    os.mkfifo(folder / "2.png")
    os.mkfifo(folder / "without_extension")
    (folder / "3.png").symlink_to("/dev/zero")
    (folder / "4.png").symlink_to("4.png")
    (folder / "5.png").symlink_to(tmp_path / "images")
    for name, target in (("a", "/"), ("b", "/proc"), ("c", "/sys/class"), ("d", folder), ("e", tmp_path)):
        (folder / name).symlink_to(target, target_is_directory=True)
    with (folder / "6.png").open("wb") as sparse:
        sparse.truncate(10**12)
    assert levels(folder) == [0, 1, 1]  # 1.png is below 5.png, a link to a folder, too
    assert store(folder).original_sizes().tolist() == [[4, 4]] * 3
    assert reasons(folder) == ["the image file cannot be read: it has 1,000.0 GB, more than 0.3 GB"]
    assert "3 images are used; left out: 3 (not a regular file), 1 (link to a missing file), " in caplog.text
    assert "2 (link to a folder that contains the set), 2 (link to a folder of the operating system)" in caplog.text


def test_deeply_nested_folders_end_at_a_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write(tmp_path / "set" / "0.png", 0)
    deep = tmp_path / "set"
    for _ in range(300):
        deep = deep / "a"
        deep.mkdir()
    write(deep / "1.png", 1)
    assert levels(tmp_path / "set") == [0]
    assert "left out: 1 (folder within more than 200 folders)" in caplog.text


DESCRIPTIONS = {
    "absolute": "configs:\n- config_name: default\n  data_files: {outside}/train.parquet\n",
    "above": "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ../outside/*.parquet\n",
    "url": "configs:\n- config_name: default\n  data_files: https://localhost:9/train.parquet\n",
    "archive": "configs:\n- config_name: default\n  data_files: zip://a.parquet::b.zip\n",
    "data_dir": "configs:\n- config_name: default\n  data_dir: ../outside\n",
}


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_of_the_set_cannot_name_files_in_other_places(name: str, file: str, tmp_path: Path) -> None:
    image = pa.array([{"bytes": encoded(CANARY), "path": None}])
    for folder in ("set", "outside"):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"image": image}), tmp_path / folder / "train.parquet")
    header = DESCRIPTIONS[name].replace("{outside}", str(tmp_path / "outside"))
    (tmp_path / "set" / file).write_text(f"---\n{header}---\n" if file == "README.md" else header)
    with pytest.raises(ValueError, match=rf"'train': .*{file} must only name files in its folder, got "):
        levels(tmp_path / "set")


def test_a_description_may_name_files_in_its_folder_and_cannot_wait_or_expand(tmp_path: Path) -> None:
    image = pa.array([{"bytes": encoded(7), "path": None}])
    (tmp_path / "set" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"image": image}), tmp_path / "set" / "data" / "a.parquet")
    readme = tmp_path / "set" / "README.md"
    header = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*\n"
    readme.write_text(f"---\n{header}---\n# Images\n")
    assert levels(tmp_path / "set") == [7]
    aliases = "a: &a [x, x]\n" + "".join(f"b{k}: &b{k} [*{'a' if not k else f'b{k - 1}'}, *a]\n" for k in range(40))
    nested = "a: " + "[" * 200_000 + "]" * 200_000 + "\n"  # crashes the C library of YAML
    for text, reason in ((aliases, "repeats the node a"), (nested, "contains more than 100 nested lists")):
        readme.write_text(f"---\n{text}---\n")
        with pytest.raises(ValueError, match=f"README.md must have plain values in its YAML header, but it {reason}"):
            levels(tmp_path / "set")
    readme.unlink()
    os.mkfifo(readme)
    with pytest.raises(ValueError, match=r"README\.md cannot be read: it is not a regular file"):
        levels(tmp_path / "set")


@pytest.mark.parametrize("name", ["../outside/data.arrow", "{outside}/data.arrow", "fifo.arrow", "/dev/zero"])
def test_a_saved_set_cannot_list_files_in_other_places(name: str, tmp_path: Path) -> None:
    import json

    import datasets

    for folder in ("set", "outside"):
        features = datasets.Features({"image": datasets.Image(decode=False)})
        rows = [{"bytes": encoded(CANARY), "path": None}]
        datasets.Dataset.from_dict({"image": rows}, features).save_to_disk(tmp_path / folder)
    (file,) = (tmp_path / "outside").glob("*.arrow")
    file.rename(file.with_name("data.arrow"))
    os.mkfifo(tmp_path / "set" / "fifo.arrow")
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    state["_data_files"] = [{"filename": name.replace("{outside}", str(tmp_path / "outside"))}]
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state\.json must list files in its folder, got"):
        levels(tmp_path / "set")


@pytest.mark.filterwarnings("ignore")  # the library leaves the file open
def test_a_set_of_paths_in_a_metadata_file_reads_no_image_above_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "canary.png", CANARY)
    for number in range(3):
        write(tmp_path / "set" / f"{number}.png", number)
    (tmp_path / "set" / "metadata.csv").write_text("file_name\n0.png\n1.png\n../canary.png\n2.png\n")
    with pytest.raises(ValueError, match=r"cannot be read as images .*\.\./canary\.png"):
        levels(tmp_path / "set")

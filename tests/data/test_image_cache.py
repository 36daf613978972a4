"""Decoded sets that are built once and memory-mapped by all processes."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.data import building
from diffusion_lab.data.building import Decoder
from diffusion_lab.data.image_cache import ImageCache
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.paths import default_cache_folder
from support.processes import forked_processes
from support.time_limit import time_limit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of twenty images of 4 x 4 pixels; all pixels of image k are k."""
    (tmp_path / "set").mkdir()
    for number in range(20):
        Image.new("L", (4, 4), number).save(tmp_path / "set" / f"{number:02}.png")
    return tmp_path / "set"


def store(folder: Path, **settings: object) -> ImageStore:
    settings = {"channels": 1, "resolution": 4, "cache_folder": folder.parent / "cache"} | settings
    return ImageStore(None, folder, label_column=None, **settings)  # type: ignore[arg-type]


def levels(folder: Path, **settings: object) -> list[int]:
    images = store(folder, **settings).load()
    return images.gather(np.arange(len(images)))[:, 0, 0, 0].tolist()


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in (folder.parent / "cache" / "images").iterdir() if path.is_dir())


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """Ranges that are decoded during the test."""
    ranges: list[range] = []
    decode = Decoder.__call__

    def recording(decoder: Decoder, numbers: range) -> object:
        ranges.append(numbers)
        return decode(decoder, numbers)

    monkeypatch.setattr(Decoder, "__call__", recording)
    return ranges


def test_a_set_is_decoded_once(folder: Path, decodings: list[range]) -> None:
    assert [levels(folder) for _ in range(3)] == [list(range(20))] * 3
    assert decodings == [range(20)]


def in_process(function: Callable[[Path], object], folder: Path) -> ForkServerProcess:
    process = forked_processes().Process(target=function, args=(folder,))
    process.start()
    return process


def exit_status(process: ForkServerProcess) -> int | None:
    process.join(timeout=120)
    return process.exitcode


def load_without_datasets(folder: Path) -> None:
    libraries = {"datasets", "pyarrow"}
    for name in [name for name in sys.modules if name.partition(".")[0] in {"diffusion_lab", *libraries}]:
        del sys.modules[name]
    from diffusion_lab.data.image_store import ImageStore  # imported again, with all modules that it uses

    images = ImageStore(
        None, folder, label_column=None, channels=1, resolution=4, cache_folder=folder.parent / "cache"
    ).load()
    sys.exit(0 if len(images) == 20 and libraries.isdisjoint(sys.modules) else 1)


def test_loading_from_the_cache_imports_neither_datasets_nor_pyarrow(folder: Path) -> None:
    levels(folder)
    assert exit_status(in_process(load_without_datasets, folder)) == 0


def change_a_file(folder: Path) -> None:
    Image.new("L", (4, 4), 99).save(folder / "07.png")


def change_only_content_and_time(folder: Path) -> None:
    content = (folder / "07.png").read_bytes()
    replaced = content.replace(content[33:], (folder / "08.png").read_bytes()[33:])
    assert len(replaced) == len(content)
    (folder / "07.png").write_bytes(replaced)
    os.utime(folder / "07.png", ns=(1, 1))


def remove_a_file(folder: Path) -> None:
    (folder / "07.png").unlink()


@pytest.mark.parametrize(
    ("change", "found"),
    [(change_a_file, [*range(7), 99]), (change_only_content_and_time, [*range(7), 8]), (remove_a_file, [*range(7), 8])],
)
def test_a_changed_folder_is_decoded_again(folder: Path, change: Callable[[Path], None], found: list[int]) -> None:
    levels(folder)
    change(folder)
    assert levels(folder)[:8] == found


def test_each_preparation_has_its_own_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices: list[dict[str, object]] = [{}, {"channels": 3}, {"resolution": 6}, {"fit": "pad"}, {"resample": "box"}]
    for choice in choices:
        levels(folder, **choice)
    monkeypatch.setattr("diffusion_lab.data.decoding.VERSION", -1)
    levels(folder)
    assert len(entries(folder)) == 6


def test_an_incomplete_entry_is_rebuilt(folder: Path, decodings: list[range], caplog: pytest.LogCaptureFixture) -> None:
    levels(folder)
    (entry,) = entries(folder)
    meta = json.loads((entry / "meta.json").read_text())
    damages: list[Callable[[], object]] = [
        lambda: os.truncate(entry / "pixels.uint8", 319),
        lambda: (entry / "labels.int64").unlink(),
        lambda: (entry / "meta.json").write_text("{"),
        lambda: (entry / "meta.json").write_text(json.dumps(meta | {"shape": [20, 1]})),
        lambda: (entry / "meta.json").write_text(json.dumps({"shape": [20, 1, 4, 4]})),
    ]
    for number, damage in enumerate(damages, start=2):
        damage()
        assert levels(folder) == list(range(20))
        assert len(decodings) == number
        assert f"{entry} is damaged and will be rebuilt" in caplog.messages[-2]


def build_and_die(folder: Path) -> None:
    """Decode four images at a time and kill this process after twelve."""
    decode, building.CHUNK_BYTES = Decoder.__call__, 64

    def decode_or_die(decoder: Decoder, numbers: range) -> object:
        if numbers.start > 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(decoder, numbers)

    Decoder.__call__ = decode_or_die  # type: ignore[assignment, method-assign]
    store(folder).load()


def test_the_incomplete_set_of_a_killed_process_is_deleted_and_never_used(folder: Path) -> None:
    assert exit_status(in_process(build_and_die, folder)) == -signal.SIGKILL
    (partial,) = entries(folder)
    assert partial.suffix == ".partial"
    assert (partial / "pixels.uint8").stat().st_size == 192  # twelve of twenty images
    assert levels(folder) == list(range(20))
    assert [path.suffix for path in entries(folder)] == [""]


def build_slowly(folder: Path) -> None:
    """Write the fingerprint of the set to a file, and leave another file for each call of the decoder."""
    decode, name = Decoder.__call__, f"{folder.parent}/{{}}_{os.getpid()}"

    def slow_decode(decoder: Decoder, numbers: range) -> object:
        Path(name.format("decoding")).touch()
        time.sleep(0.5)
        return decode(decoder, numbers)

    Decoder.__call__ = slow_decode  # type: ignore[assignment, method-assign]
    images = store(folder).load()
    Path(name.format("loaded")).write_text(f"{len(images)} {images.fingerprint}")


def test_two_simultaneous_processes_build_a_set_once(folder: Path) -> None:
    processes = [in_process(build_slowly, folder) for _ in range(2)]
    assert [exit_status(process) for process in processes] == [0, 0]
    assert len(list(folder.parent.glob("decoding_*"))) == 1
    loaded = [path.read_text() for path in folder.parent.glob("loaded_*")]
    assert len(loaded) == 2
    assert loaded[0] == loaded[1]
    assert loaded[0].startswith("20 ")


def test_an_interrupted_build_leaves_no_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store(folder).load()
    assert entries(folder) == []
    assert levels(folder) == list(range(20))


def test_a_cache_that_cannot_be_written_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.cache_folder must be a writable folder .*: Not a direct"):
        store(folder, cache_folder=tmp_path / "file").load()

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Decoder, "__call__", disk_full)
    with pytest.raises(ValueError, match=r"data\.cache_folder must .* enough free space, got .*: No space left on dev"):
        store(folder).load()
    assert entries(folder) == []


def test_worker_processes_write_the_same_pixels_as_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = store(folder).load().fingerprint
    shutil.rmtree(folder.parent / "cache")
    (folder / "05.png").write_bytes(b"damaged")
    serial = store(folder).load().fingerprint
    shutil.rmtree(folder.parent / "cache")
    monkeypatch.setattr("diffusion_lab.data.building.CHUNK_BYTES", 48)  # three images per range
    monkeypatch.setattr("diffusion_lab.data.building._workers_pay_off", lambda *_: True)
    monkeypatch.setattr("diffusion_lab.data.building._num_cpus", lambda: 2)
    context = forked_processes()  # as separate as spawned processes, in a tenth of their time
    monkeypatch.setattr("diffusion_lab.data.building.multiprocessing.get_context", lambda method: context)
    images = store(folder).load()
    assert images.fingerprint == serial != expected
    assert images.gather(np.arange(19))[:, 0, 3, 3].tolist() == [*range(5), *range(6, 20)]
    assert "continues in one process" not in caplog.text


def test_a_set_is_copied_once_to_the_disk_of_the_node_and_read_from_there(
    folder: Path, tmp_path: Path, decodings: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = store(folder).load()
    monkeypatch.setenv("DIFFUSION_LAB_NODE_CACHE", str(tmp_path / "node"))
    images = store(folder).load()
    assert images.file is not None
    assert images.file.parents[3] == tmp_path / "node"
    assert images.gather(np.arange(20))[:, 0, 0, 0].tolist() == list(range(20))
    assert images.fingerprint == shared.fingerprint
    written = images.file.stat().st_mtime_ns
    assert store(folder).load().file == images.file
    assert images.file.stat().st_mtime_ns == written
    assert len(decodings) == 1
    os.truncate(images.file, 100)  # a damaged copy is replaced
    assert levels(folder) == list(range(20))


def test_the_name_of_a_split_does_not_choose_a_place_outside_of_the_cache(folder: Path, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if path.name != "images" and "cache" not in path.parts}
    with pytest.raises(ValueError, match=r"with a split '\.\./\.\./\.\./a': its splits are train"):
        store(folder).load("../../../a")
    assert {path for path in tmp_path.rglob("*") if path.name != "images" and "cache" not in path.parts} == before


def test_only_the_files_of_a_set_are_copied_to_the_node(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store(folder).load().file
    assert entry is not None
    (entry.parent / "damaged.csv").symlink_to("/dev/zero")  # a copy would fill the disk
    (entry.parent / "other").symlink_to("/dev/zero")
    monkeypatch.setenv("DIFFUSION_LAB_NODE_CACHE", str(tmp_path / "node"))
    with time_limit(20):
        copied = store(folder).load().file
    assert copied is not None
    assert copied.parents[3] == tmp_path / "node"
    assert {file.name for file in copied.parent.iterdir()} == {"pixels.uint8", "labels.int64", "meta.json"}


def test_the_shared_set_is_read_if_it_cannot_be_copied_to_the_node(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFUSION_LAB_NODE_CACHE", str(tmp_path / "file"))
    images = store(folder).load()
    assert images.file is not None
    assert images.file.parents[2] == tmp_path / "cache"
    assert "cannot be copied to" in caplog.text
    assert levels(folder) == list(range(20))

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("DIFFUSION_LAB_NODE_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr(shutil, "copyfile", disk_full)
    assert levels(folder) == list(range(20))
    assert "(DIFFUSION_LAB_NODE_CACHE): No space left on device" in caplog.messages[-2]
    assert not [path for path in (tmp_path / "node").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_environment_variables_set_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_cache_folder() == Path(os.environ["DIFFUSION_LAB_CACHE"])
    monkeypatch.delenv("DIFFUSION_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "diffusion_lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder().expanduser() == Path("~/.cache/diffusion_lab").expanduser()
    assert ImageCache(tmp_path).folder == tmp_path

"""Sets that are built once and mapped by all."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.data.building import Decoder
from diffusion_lab.data.image_cache import ImageCache
from diffusion_lab.data.image_store import ImageStore
from diffusion_lab.paths import default_cache_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images of 4 x 4, image k of level k."""
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
    """The ranges that were decoded since."""
    ranges: list[range] = []
    decode = Decoder.__call__

    def counted(decoder: Decoder, numbers: range) -> object:
        ranges.append(numbers)
        return decode(decoder, numbers)

    monkeypatch.setattr(Decoder, "__call__", counted)
    return ranges


def test_a_set_is_decoded_once(folder: Path, decodings: list[range]) -> None:
    assert [levels(folder) for _ in range(3)] == [list(range(20))] * 3
    assert decodings == [range(20)]


def test_a_warm_cache_needs_neither_the_library_of_sets_nor_the_decoder(folder: Path) -> None:
    levels(folder)
    code = (
        "import sys; from diffusion_lab.data.image_store import ImageStore; "
        f"images = ImageStore(None, {str(folder)!r}, label_column=None, channels=1, resolution=4, "
        f"cache_folder={str(folder.parent / 'cache')!r}).load(); "
        "sys.exit(len(images) != 20 or 'datasets' in sys.modules or 'pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def change_a_file(folder: Path) -> None:
    Image.new("L", (4, 4), 99).save(folder / "07.png")


def change_only_its_time(folder: Path) -> None:
    content = (folder / "07.png").read_bytes()
    replaced = content.replace(content[33:], (folder / "08.png").read_bytes()[33:])
    assert len(replaced) == len(content)
    (folder / "07.png").write_bytes(replaced)
    os.utime(folder / "07.png", ns=(1, 1))


def remove_a_file(folder: Path) -> None:
    (folder / "07.png").unlink()


@pytest.mark.parametrize(
    ("change", "found"),
    [(change_a_file, [*range(7), 99]), (change_only_its_time, [*range(7), 8]), (remove_a_file, [*range(7), 8])],
)
def test_other_files_are_another_set(folder: Path, change: Callable[[Path], None], found: list[int]) -> None:
    levels(folder)
    change(folder)
    assert levels(folder)[:8] == found


def test_another_preparation_is_another_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices: list[dict[str, object]] = [{}, {"channels": 3}, {"resolution": 6}, {"fit": "pad"}, {"resample": "box"}]
    for choice in choices:
        levels(folder, **choice)
    monkeypatch.setattr("diffusion_lab.data.decoding.VERSION", -1)
    levels(folder)
    assert len(entries(folder)) == 6


def test_an_entry_that_is_not_whole_is_built_again(
    folder: Path, decodings: list[range], capsys: pytest.CaptureFixture[str]
) -> None:
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
        assert f"{entry} is damaged and is built again" in capsys.readouterr().err


def test_what_a_killed_process_left_behind_is_removed_and_never_used(folder: Path) -> None:
    code = (
        "import os, signal; from diffusion_lab.data import building; from diffusion_lab.data.image_store import "
        "ImageStore; building.CHUNK_BYTES = 64; decode = building.Decoder.__call__; "
        "building.Decoder.__call__ = lambda self, r: os.kill(os.getpid(), signal.SIGKILL) if r.start > 9 else "
        "decode(self, r); "
        f"ImageStore(None, {str(folder)!r}, label_column=None, channels=1, resolution=4, "
        f"cache_folder={str(folder.parent / 'cache')!r}).load()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == -9
    (partial,) = entries(folder)
    assert partial.suffix == ".partial"
    assert (partial / "pixels.uint8").stat().st_size == 192  # twelve images of twenty
    assert levels(folder) == list(range(20))
    assert [path.suffix for path in entries(folder)] == [""]


def test_two_processes_at_once_build_a_set_once(folder: Path) -> None:
    code = (
        "import sys, time; from diffusion_lab.data import building; from diffusion_lab.data.image_store import "
        "ImageStore; decode = building.Decoder.__call__; "
        "building.Decoder.__call__ = lambda self, r: (time.sleep(2), print('decoding'), decode(self, r))[2]; "
        f"images = ImageStore(None, {str(folder)!r}, label_column=None, channels=1, resolution=4, "
        f"cache_folder={str(folder.parent / 'cache')!r}).load(); print(len(images), images.fingerprint)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], text=True, stdout=-1, stderr=-1) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    lines = [line for out, _ in said for line in out.splitlines()]
    assert lines.count("decoding") == 1
    assert len({line for line in lines if line.startswith("20 ")}) == 1
    assert [process.returncode for process in both] == [0, 0]


def test_a_build_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store(folder).load()
    assert entries(folder) == []
    assert levels(folder) == list(range(20))


def test_a_cache_that_cannot_be_written_is_said_in_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.cache_folder must be a folder that can be written to .*Not a direct"):
        store(folder, cache_folder=tmp_path / "file").load()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Decoder, "__call__", full)
    with pytest.raises(ValueError, match=r"data\.cache_folder must .* with enough space, got .*: No space left on dev"):
        store(folder).load()
    assert entries(folder) == []


def test_many_processes_write_what_one_would(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = store(folder).load().fingerprint
    shutil.rmtree(folder.parent / "cache")
    (folder / "05.png").write_bytes(b"damaged")
    serial = store(folder).load().fingerprint
    shutil.rmtree(folder.parent / "cache")
    monkeypatch.setattr("diffusion_lab.data.building.CHUNK_BYTES", 48)  # three images a range
    monkeypatch.setattr("diffusion_lab.data.building._pays", lambda *_: True)
    monkeypatch.setattr("diffusion_lab.data.building._num_processors", lambda: 2)
    images = store(folder).load()
    assert images.fingerprint == serial != expected
    assert images.gather(np.arange(19))[:, 0, 3, 3].tolist() == [*range(5), *range(6, 20)]
    assert "goes on in one process" not in capsys.readouterr().err


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_cache_folder() == Path(os.environ["DIFFUSION_LAB_CACHE"])
    monkeypatch.delenv("DIFFUSION_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "diffusion_lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == Path("~/.cache/diffusion_lab")
    assert ImageCache(tmp_path).folder == tmp_path

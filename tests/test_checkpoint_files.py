"""Files that are whole or not there."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.checkpoint_files import DamagedCheckpointError, keep_previous, newest, read, read_run, write


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weights = {f"weight_{k}": torch.randn(20, 13, generator=generator) for k in range(3)}
    return {"state_dict": weights, "global_step": step}


def written(folder: Path, *steps: int) -> None:
    for step in steps:
        keep_previous(folder)
        write(state(step), folder / "last.ckpt")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(state(3), tmp_path / "new" / "last.ckpt")
    for mmap in (False, True):
        content = read(tmp_path / "new" / "last.ckpt", mmap=mmap)
        assert content["global_step"] == 3
        assert torch.equal(content["state_dict"]["weight_1"], state(3)["state_dict"]["weight_1"])


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(state(3), tmp_path / "last.ckpt")

    def full(content: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        write(state(4), tmp_path / "last.ckpt")
    assert read(tmp_path / "last.ckpt")["global_step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: told.append("sync"))
    replace = Path.replace

    def name(self: Path, target: Path) -> Path:
        told.append("name")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", name)
    write(state(3), tmp_path / "last.ckpt")
    assert told == ["sync", "name", "sync"]  # the file, its name, the folder


def test_the_newest_of_two_is_taken_and_the_other_where_that_one_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert newest(tmp_path) is None
    written(tmp_path, 1, 2, 3)
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    assert [read(path)["global_step"] for path in (last, previous)] == [3, 2]
    assert newest(tmp_path) == last
    last.write_bytes(last.read_bytes()[:-100])
    assert newest(tmp_path) == previous
    assert "last.ckpt is damaged" in capsys.readouterr().err
    last.unlink()  # killed between two names, on a file system without links
    assert newest(tmp_path) == previous
    previous.write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"previous\.ckpt is damaged"):
        newest(tmp_path)


def test_no_damage_is_read_as_another_state(tmp_path: Path) -> None:
    path, places = tmp_path / "last.ckpt", random.Random(0)
    write(state(3), path)
    whole, right, num_refused = path.read_bytes(), state(3), 0
    for kind in ("flip", "cut", "zeros", "garbage") * 50:
        damaged, place = bytearray(whole), places.randrange(len(whole))
        if kind == "flip":
            damaged[place] ^= 1 << places.randrange(8)
        elif kind == "cut":
            del damaged[place:]
        else:
            size = min(200, len(whole) - place)
            damaged[place : place + size] = bytes(size) if kind == "zeros" else places.randbytes(size)
        path.write_bytes(damaged)
        try:
            content = read_run(path, mmap=bool(place % 2))
        except DamagedCheckpointError:
            num_refused += 1
            continue
        assert content["global_step"] == 3  # a flip in a date or in the padding between records
        for name, weight in right["state_dict"].items():
            assert torch.equal(content["state_dict"][name], weight)
    assert num_refused > 180


def test_other_files_are_refused_with_what_they_lack(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(DamagedCheckpointError, match="it holds list"):
        read(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    with pytest.raises(DamagedCheckpointError, match="no checkpoint of a run: it holds no global_step"):
        read_run(tmp_path / "weights.ckpt")
    torch.save({"state_dict": print}, tmp_path / "code.ckpt")  # loading must never run code
    with pytest.raises(DamagedCheckpointError, match=r"code\.ckpt is damaged"):
        read(tmp_path / "code.ckpt")
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt is missing"):
        read(tmp_path / "none.ckpt")


def test_a_person_who_interrupts_the_reading_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 1)
    path = next(tmp_path.glob("*.ckpt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(path)

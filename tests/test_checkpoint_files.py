"""Checkpoint files: atomic writes and verified reads."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab import checkpoint_files
from diffusion_lab.checkpoint_files import DamagedCheckpointError, keep_previous, newest, read, read_run, write


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weights = {f"weight_{k}": torch.randn(20, 13, generator=generator) for k in range(3)}
    return {"state_dict": weights, "global_step": step}


def write_checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        keep_previous(folder)
        write(state(step), folder / "last.ckpt")


def test_a_checkpoint_that_is_written_can_be_read(tmp_path: Path) -> None:
    write(state(3), tmp_path / "new" / "last.ckpt")
    for mmap in (False, True):
        content = read(tmp_path / "new" / "last.ckpt", mmap=mmap)
        assert content["global_step"] == 3
        assert torch.equal(content["state_dict"]["weight_1"], state(3)["state_dict"]["weight_1"])


def test_a_failed_write_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(state(3), tmp_path / "last.ckpt")

    def save_on_a_full_disk(content: object, file: Any) -> None:
        file.write(b"a part")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", save_on_a_full_disk)
    with pytest.raises(OSError, match="disk full"):
        write(state(4), tmp_path / "last.ckpt")
    assert read(tmp_path / "last.ckpt")["global_step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: calls.append("sync"))
    replace = Path.replace

    def rename(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", rename)
    write(state(3), tmp_path / "last.ckpt")
    assert calls == ["sync", "rename", "sync"]  # the file, its name, the folder


def test_the_newest_checkpoint_is_used_and_the_previous_one_if_it_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert newest(tmp_path) is None
    write_checkpoints(tmp_path, 1, 2, 3)
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    assert [read(path)["global_step"] for path in (last, previous)] == [3, 2]
    assert newest(tmp_path) == last
    last.write_bytes(last.read_bytes()[:-100])
    assert newest(tmp_path) == previous
    assert "last.ckpt is damaged" in caplog.text
    last.unlink()  # killed between two renames on a file system without hard links
    assert newest(tmp_path) == previous
    previous.write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"previous\.ckpt is damaged"):
        newest(tmp_path)


@pytest.mark.parametrize("verified", ["before it is loaded", "while it is loaded"])
def test_damaged_files_never_load_as_a_different_state(
    verified: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_loaded, load = itertools.count(), torch.load

    def counting_load(*arguments: Any, **settings: Any) -> Any:
        next(num_loaded)
        return load(*arguments, **settings)

    monkeypatch.setattr(torch, "load", counting_load)
    if verified == "while it is loaded":
        monkeypatch.setattr(checkpoint_files, "PARALLEL_VERIFICATION", 0)
    path, generator = tmp_path / "last.ckpt", random.Random(0)
    write(state(3), path)
    content, expected, num_rejected = path.read_bytes(), state(3), 0
    for kind in ("flip", "cut", "zeros", "garbage") * 50:
        damaged, position = bytearray(content), generator.randrange(len(content))
        if kind == "flip":
            damaged[position] ^= 1 << generator.randrange(8)
        elif kind == "cut":
            del damaged[position:]
        else:
            size = min(200, len(content) - position)
            damaged[position : position + size] = bytes(size) if kind == "zeros" else generator.randbytes(size)
        path.write_bytes(damaged)
        try:
            checkpoint = read_run(path, mmap=bool(position % 2))
        except DamagedCheckpointError:
            num_rejected += 1
            continue
        # A flip in a date or in the padding between records has no effect.
        assert checkpoint["global_step"] == 3
        for name, weight in expected["state_dict"].items():
            assert torch.equal(checkpoint["state_dict"][name], weight)
    assert num_rejected > 180
    assert (next(num_loaded) > 100) == (verified == "while it is loaded")


def test_other_files_are_rejected_with_a_specific_error(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(DamagedCheckpointError, match="it contains a list"):
        read(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    with pytest.raises(DamagedCheckpointError, match="not a run checkpoint: global_step is missing"):
        read_run(tmp_path / "weights.ckpt")
    torch.save({"state_dict": print}, tmp_path / "code.ckpt")  # loading must never run code
    with pytest.raises(DamagedCheckpointError, match=r"code\.ckpt is damaged"):
        read(tmp_path / "code.ckpt")
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt is missing"):
        read(tmp_path / "none.ckpt")


def test_a_keyboard_interrupt_during_a_read_is_not_replaced_by_another_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoints(tmp_path, 1)
    path = next(tmp_path.glob("*.ckpt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_files, "PARALLEL_VERIFICATION", 0)
    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(path)

"""Files and folders that are written completely or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lab.files.atomic import atomic_file, atomic_folder

KILLED = """
import os, signal
from pathlib import Path
from diffusion_lab.files.atomic import atomic_file, atomic_folder
with {call} as partial:
    (partial / "part" if partial.is_dir() else partial).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_until_killed(call: str) -> None:
    """Run a process that is killed while it writes."""
    assert subprocess.run([sys.executable, "-c", KILLED.format(call=call)], check=False).returncode == -9


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The file descriptors that os.fsync received."""
    descriptors: list[int] = []
    monkeypatch.setattr("os.fsync", descriptors.append)
    return descriptors


def test_a_file_has_its_new_content_when_the_block_ends_and_its_old_content_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with atomic_file(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with atomic_file(path) as partial:
        partial.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_of_the_old_file_never_reads_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("first")
    with path.open() as file:
        with atomic_file(path) as partial:
            partial.write_text("second")
        assert file.read() == "first"


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("first")
    with pytest.raises(OSError, match="No space"), atomic_file(path) as partial:  # noqa: PT012
        partial.write_text("sec")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_keeps_the_old_file_and_its_temporary_file_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("first")
    run_until_killed(f"atomic_file(Path({str(path)!r}))")
    assert path.read_text() == "first"
    assert (tmp_path / "table.csv.partial").read_text() == "half"
    with atomic_file(path) as partial:
        partial.write_text("second")
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_concurrent_writers_have_different_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    run_until_killed(f"atomic_file(Path({str(path)!r}), concurrent=True)")
    (other,) = tmp_path.iterdir()
    with atomic_file(path, concurrent=True) as partial:
        assert partial != other
        partial.write_text("ours")
    assert (path.read_text(), other.read_text()) == ("ours", "half")


def test_only_durable_files_are_synced_with_their_folder(tmp_path: Path, synced: list[int]) -> None:
    for durable, num_synced in ((False, 0), (True, 2)):
        with atomic_file(tmp_path / "table.csv", durable=durable) as partial:
            partial.write_text("content")
        assert len(synced) == num_synced


def test_a_folder_appears_complete_and_synced(tmp_path: Path, synced: list[int]) -> None:
    path = tmp_path / "set"
    with atomic_folder(path) as partial:
        for name in ("pixels", "labels"):
            (partial / name).write_text(name)
        assert not path.exists()
    assert sorted(file.read_text() for file in path.iterdir()) == ["labels", "pixels"]
    assert len(synced) == 4  # two files, the folder and its parent
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "set") as partial:  # noqa: PT012
        (partial / "pixels").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_processes_are_deleted_and_never_used(tmp_path: Path) -> None:
    path = tmp_path / "set[1]"  # characters with a meaning in glob patterns
    run_until_killed(f"atomic_folder(Path({str(path)!r}))")
    (leftover,) = tmp_path.iterdir()
    assert leftover.suffix == ".partial"
    with atomic_folder(path) as partial:
        assert not leftover.exists()
        (partial / "pixels").write_text("complete")
    assert [file.name for file in path.iterdir()] == ["pixels"]
    assert list(tmp_path.iterdir()) == [path]

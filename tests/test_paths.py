"""The home folder, caches and paths with ~ of users whom the system does not know, as in containers."""

import getpass
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from diffusion_lab import paths


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "DIFFUSION_LAB_CACHE", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # restored after the test even if the test sets it
        monkeypatch.delenv(name)
    return tmp_path / f"diffusion_lab_{os.getuid()}"


@pytest.fixture
def unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(key: object) -> None:
        raise KeyError(key)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")


@pytest.mark.usefixtures("unknown_user")
def test_a_user_without_passwd_entry_and_home_has_a_temporary_home_and_a_name(temporary: Path) -> None:
    with pytest.raises(RuntimeError):
        Path.home()
    assert paths.default_cache_folder() == temporary / ".cache" / "diffusion_lab"  # also without a command
    assert "HOME=FOLDER" in (paths.provide_home() or "")
    assert Path.home() == temporary
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert getpass.getuser() == str(os.getuid())
    assert paths.default_cache_folder() == temporary / ".cache" / "diffusion_lab"
    assert paths.provide_home() is None


@pytest.mark.parametrize("has_cache", [True, False])
def test_a_home_that_is_not_writable_is_read_and_only_caches_are_elsewhere(
    has_cache: bool, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / ".cache").mkdir(parents=True) if has_cache else home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(home))  # root may write anywhere
    assert "is not writable" in (paths.provide_home() or "")
    name = "DIFFUSION_LAB_CACHE" if has_cache else "XDG_CACHE_HOME"
    assert os.environ[name] == str(temporary / ".cache")
    assert os.environ["HOME"] == str(home)
    assert ("XDG_CACHE_HOME" in os.environ) == (not has_cache)


def test_a_normal_home_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    assert paths.provide_home() is None
    assert dict(os.environ) == before


def test_the_home_of_an_unknown_user_remains_in_a_path() -> None:
    assert paths.expanduser("~nobody9/images") == Path("~nobody9/images")
    assert paths.expanduser("~") == Path.home()

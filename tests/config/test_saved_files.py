from pathlib import Path

import pytest

from diffusion_lab.config.saved_files import read_saved
from diffusion_lab.errors import UserError


def test_a_changed_file_is_read_again_and_readers_share_no_values(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: {b: 1}\n")
    read_saved(path, dict)["a"]["b"] = 5
    assert read_saved(path, dict) == {"a": {"b": 1}}
    path.write_text("a: {b: 2}\n")
    assert read_saved(path, dict) == {"a": {"b": 2}}


@pytest.mark.parametrize("text", ["", "\n", "# a comment\n"])
def test_a_file_without_values_is_empty(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert read_saved(tmp_path / "config.yaml", dict) == {}
    assert read_saved(tmp_path / "config.yaml", list) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 0b_", r"config\.yaml cannot be read: invalid literal for int"),
        ('a: "\\UFFFFFFFF"', r"config\.yaml cannot be read: "),
        ("hello", r"config\.yaml must contain a dict, as a run writes it, got str"),
        ("a: !x 1", r"config\.yaml must contain plain values only, as a run writes them, but it contains the tag !x"),
    ],
)
def test_other_files_are_refused_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_saved(tmp_path / "config.yaml", dict)

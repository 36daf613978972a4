from pathlib import Path

from diffusion_lab.config.saved_files import read_saved


def test_a_changed_file_is_read_again_and_readers_share_no_values(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: {b: 1}\n")
    read_saved(path, dict)["a"]["b"] = 5
    assert read_saved(path, dict) == {"a": {"b": 1}}
    path.write_text("a: {b: 2}\n")
    assert read_saved(path, dict) == {"a": {"b": 2}}

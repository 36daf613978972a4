"""Tables that are printed to the terminal."""

import re

import pytest

from diffusion_lab.reporting import text_tables
from diffusion_lab.reporting.text_tables import print_rows

NAMES = ["schedule", "seed", "state", "fd_fashion_cnn_2000_train", "images_per_second"]
LINES = [NAMES, ["linear", "1", "finished", "12.34", "1,234"], ["cosine", "2", "failed", "", "99"]]


def printed(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(text_tables, "FILE_WIDTH", width)
    print_rows(LINES, "title", num_labels=2)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    return [" ".join(re.findall(r"[^│┃\s]+", line)) for line in lines]


def test_a_table_that_fits_has_one_line_per_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(100, capsys, monkeypatch)
    assert {" ".join(NAMES), "linear 1 finished 12.34 1,234", "cosine 2 failed 99"} <= set(lines)


def test_a_wide_table_has_its_column_names_in_several_lines_and_keeps_its_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(60, capsys, monkeypatch)
    assert "linear 1 finished 12.34 1,234" in lines
    assert {"fashion_", "cnn_ images_", "2000_ per_", "schedule seed state train second"} <= set(lines)


def test_columns_that_do_not_fit_follow_in_a_second_table_with_the_labels_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(45, capsys, monkeypatch)
    assert [line for line in lines if line.startswith("linear")] == ["linear 1 finished 12.34", "linear 1 1,234"]
    assert [line for line in lines if line.startswith("cosine")] == ["cosine 2 failed", "cosine 2 99"]

"""CSV files whose texts a spreadsheet shows literally, and their reader."""

import csv
from pathlib import Path

import pytest

from diffusion_lab.reporting.csv_files import csv_text, from_csv_text, read_csv, write_csv, write_csv_dicts
from support.hostile_names import SHOWN, fuzzed_name

NUMBERS = ["-1", "+2", "-1.5e-3", "-.5", "-inf", "+nan", "1e-4", "0"]
FORMULAS = [
    "=1+1",
    "-x",
    "+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "-",
    "-1+1",
    "--1",
    "\uff1d1",
    "=\x1b",
    "-1_0",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_a_spreadsheet_would_execute_gets_an_apostrophe(text: str) -> None:
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("value", [*NUMBERS, -1, -1.5, float("-inf"), None, True, "", "a", "'", "'a", "a=b", "1-2"])
def test_numbers_and_other_texts_are_unchanged(value: object) -> None:
    assert csv_text(value) is value
    if isinstance(value, str):
        assert from_csv_text(value) == value


def test_paths_are_texts() -> None:
    assert csv_text(Path("-x")) == "'-x"


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 300), marks=pytest.mark.full)], ids=["20", "280"])
def test_the_reader_returns_the_original_texts_and_columns(seeds: range, tmp_path: Path) -> None:
    texts = [*SHOWN, *FORMULAS, *NUMBERS, "'=1", "''-x", "'", *map(fuzzed_name, seeds)]
    columns = list(dict.fromkeys(["text", *texts]))
    rows = [{"text": text, text: text} for text in texts]
    write_csv_dicts(tmp_path / "table.csv", rows)
    read = read_csv(tmp_path / "table.csv")
    assert [row["text"] for row in read] == texts
    assert all(list(row) == columns for row in read)
    assert [row[text] for row, text in zip(read, texts, strict=True)] == texts


def test_no_cell_of_a_file_starts_with_a_character_of_a_formula_except_numbers(tmp_path: Path) -> None:
    names = [*SHOWN, *FORMULAS, *NUMBERS, *map(fuzzed_name, range(300))]
    write_csv(tmp_path / "table.csv", ["=column", "value"], [(name, -1.5) for name in names])
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header == ["'=column", "value"]
    assert {value for _, value in rows} == {"-1.5"}
    formulas = {text for text, _ in rows if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n")}
    assert formulas == {"-1", "+2", "-1.5e-3", "-.5", "-inf", "+nan"}


def test_a_row_that_a_killed_process_wrote_in_part_lacks_its_last_cells(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("step,loss,'=a\n1,0.5,2\n2,0.")
    assert read_csv(tmp_path / "table.csv") == [{"step": "1", "loss": "0.5", "=a": "2"}, {"step": "2", "loss": "0."}]

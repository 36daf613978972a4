"""Text from files in the form that a terminal, a shell or a plot shows."""

import io
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.progress import BarColumn
from rich.table import Table

from diffusion_lab.reporting import plots
from diffusion_lab.reporting.console import Console, DescriptionColumn, Progress
from diffusion_lab.reporting.text import (
    EscapedStream,
    file_name_with,
    message_text,
    plot_text,
    shell_line,
    shell_text,
    terminal_text,
    unescaped,
)
from support.hostile_names import INVISIBLE, SHOWN, fuzzed_name, record_output

FEW = [pytest.param(range(8), id="8"), pytest.param(range(8, 300), id="292", marks=pytest.mark.full)]


@pytest.mark.parametrize("name", SHOWN)
def test_a_name_is_shown_in_one_line_without_invisible_characters(name: str) -> None:
    assert terminal_text(name) == SHOWN[name]
    assert terminal_text(SHOWN[name]) == SHOWN[name]


@pytest.mark.parametrize("seeds", FEW)
def test_the_shown_form_of_any_name_is_one_visible_line(seeds: range) -> None:
    for name in map(fuzzed_name, seeds):
        shown = terminal_text(name)
        assert not INVISIBLE.search(shown)
        assert len(shown.split("\n")) == 1
        assert "\t" not in shown
        assert terminal_text(shown) == shown


def test_a_long_name_loses_its_middle() -> None:
    assert terminal_text("a" * 50 + "b" * 50, limit=23) == "a" * 14 + "..." + "b" * 6
    assert terminal_text("a" * 23, limit=23) == "a" * 23
    assert len(terminal_text("\x1b" * 1000, limit=100)) == 100


def test_the_lines_after_the_first_of_a_message_are_indented_once() -> None:
    text = "`run` must be a folder, got a\nerror: b\x1b[2J."
    assert message_text(text) == "`run` must be a folder, got a\n  error: b\\x1b[2J."
    assert message_text(message_text(text)) == message_text(text)


@pytest.mark.parametrize("seeds", FEW)
def test_a_shell_reads_the_original_name(seeds: range) -> None:
    names = [name for name in (*SHOWN, *map(fuzzed_name, seeds)) if "\x00" not in name]
    line = shell_line(["printf", "%s\\0", *names])
    assert not INVISIBLE.search(line)
    output = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert output.decode("utf-8", "surrogateescape").split("\x00")[:-1] == names
    assert shell_text("a b") == shlex.quote("a b")


def test_a_file_name_with_a_long_name_is_accepted_by_file_systems(tmp_path: Path) -> None:
    for name in ("l" * 255, "\u65e5" * 85, "short"):
        (tmp_path / file_name_with("12_", name)).mkdir()
    assert file_name_with("12_", "short") == "12_short"


@pytest.mark.parametrize("name", SHOWN)
def test_a_stream_writes_the_characters_of_names_visibly_and_keeps_lines(name: str) -> None:
    file = io.StringIO()
    stream = EscapedStream(file)
    print(f"before {name} after", "second", file=stream)
    assert file.getvalue() == f"before {SHOWN[name].replace(chr(92) + 'n', chr(10))} after second\n"


@pytest.mark.parametrize("text", ["\r 50%|##  | 1/2", "\n\n", "\x1b[A\x1b[A", "\r", "done\r\n", "a\tb\n"])
def test_a_stream_keeps_the_codes_with_which_libraries_overwrite_a_progress_line(text: str) -> None:
    file = io.StringIO()
    EscapedStream(file).write(text)
    assert file.getvalue() == text


def test_a_progress_line_with_codes_of_a_name_is_written_without_them() -> None:
    file = io.StringIO()
    EscapedStream(file).write("\rloading a\x1b[Ab\rc: 50%")
    assert file.getvalue() == "\rloading a\\x1b[Ab\\rc: 50%"


SCRIPT = r"""
import logging, sys, warnings
from diffusion_lab.commands.output import outlive_reader
outlive_reader()
name = "q\x1b[31m\u202e\udcff\x9b"
print("printed", name)
logging.basicConfig(format="%(message)s")
logging.getLogger("library").warning("logged %s", name)
warnings.warn("warned " + name)
sys.stderr.writelines(["written " + name + "\n"])
raise ValueError("raised " + name)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_printed_logged_warned_and_raised_names_reach_the_streams_of_a_command_visibly(encoding: str) -> None:
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=False, env=environment)
    shown = rb"q\x1b[31m\u202e\udcff\x9b"
    assert done.returncode == 1
    assert done.stdout == b"printed " + shown + b"\n"
    for verb in (b"logged ", b"warned ", b"written ", b"ValueError: raised "):
        assert verb + shown + b"\n" in done.stderr
    assert b"\x1b" not in done.stderr


def test_a_table_shows_names_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    file = record_output(monkeypatch)
    table = Table("name", title="[/x] \x1b[31m :smile:", caption="[/y]")
    for name in SHOWN:
        table.add_row(name)
    Console(width=80).print(table)
    lines = file.getvalue()
    assert r"[/x] \x1b[31m :smile:" in lines
    assert "[/y]" in lines
    for name in set(SHOWN) - {"two\nlines"}:
        assert SHOWN[name] in lines
    assert not INVISIBLE.search(lines)


@pytest.mark.parametrize("name", ["r[/x]", "r[bold red]q", "r\x1b[31mq", "b\u202ec", "a\nb", "{task.total} %s"])
def test_a_progress_bar_on_a_terminal_writes_its_own_escape_codes_only(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = record_output(monkeypatch)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console = Console(stderr=True, force_terminal=True, width=100)
    with Progress(DescriptionColumn(), BarColumn(), console=console) as bar:
        bar.add_task(name, total=2)
        bar.refresh()
        print("printed above the bar:", name)
    written = file.getvalue()
    assert "\x1b[?25l" in written  # the bar hides the cursor
    for code in ("q\x1b", "\x1b[31mq", "\u202e"):
        assert code not in written
    assert terminal_text(name) in written
    first_line = terminal_text(name.partition("\n")[0])
    assert f"printed above the bar: {first_line}" in written
    assert unescaped(sys.stdout) is file


def test_the_stream_below_the_streams_of_a_command_and_of_rich_is_found() -> None:
    file = io.StringIO()
    assert unescaped(EscapedStream(EscapedStream(file))) is file  # type: ignore[arg-type]
    assert unescaped(file) is file


@pytest.mark.parametrize("seeds", FEW)
def test_plots_show_any_name_of_runs_settings_and_metrics(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(dict.fromkeys([*SHOWN, *map(fuzzed_name, seeds), "l" * 1000]))
    texts, close = set[str](), pyplot.close

    def record(figure: Figure) -> None:
        texts.update(text.get_text() for text in figure.findobj(Text))
        close(figure)

    monkeypatch.setattr(pyplot, "close", record)
    points = [(1.0, 2.0), (2.0, 3.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save_by_run({"$a$\n(lower is better)": dict.fromkeys(names, 1.0)}, names, tmp_path / "by_run.png")
        assert {plot_text(name) for name in SHOWN} <= texts
        texts.clear()
        plots.save_against({"c": {name: [(name, 1.0, 0.0)] for name in names}}, "_k$$", names, tmp_path / "against.png")
        assert {plot_text(name) for name in (*SHOWN, "_k$$")} <= texts
        plots.save_lines({"$\\b$": dict.fromkeys(names[:8], points)}, "$x$", tmp_path / "lines.png")
        plots.save_curves(dict.fromkeys(names[-3:], points), tmp_path / "curves.png")


def test_matplotlib_interprets_no_part_of_a_label() -> None:
    figure = pyplot.figure()
    for name in ("$x$", "$\\frac$", "a$b", "\\$c$"):
        drawn, is_formula = figure.text(0, 0, plot_text(name))._preprocess_math(plot_text(name))  # type: ignore[attr-defined]
        assert (drawn, bool(is_formula)) == (name, False)
    assert not plot_text("_x").startswith("_")
    assert plot_text("a\nb") == "a\nb"
    pyplot.close(figure)
